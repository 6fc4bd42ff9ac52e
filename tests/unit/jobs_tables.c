/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests the two tables of job states and verbs, for each pair. */
#include <criterion/criterion.h>
#include <string.h>

#include "jobs/job.h"

/* A letter for each state, in the order of the enum. */
static const char letters[JOB_STATES + 1] = "cRPyswpaXn";

static void expect_row(const char *what, const char *from, const char *legal,
                       bool (*is_legal)(int row, enum job_state state), int row)
{
    for (int state = 0; state < JOB_STATES; state++)
        cr_expect_eq(is_legal(row, (enum job_state)state),
                     strchr(legal, letters[state]) != NULL, "%s: %s %s", what, from,
                     job_state_name((enum job_state)state));
}

static bool leads_to(int from, enum job_state to)
{
    return job_transition_is_legal((enum job_state)from, to);
}

static bool allowed_in(int verb, enum job_state state)
{
    return job_verb_is_legal(state, (enum job_verb)verb);
}

Test(tables, every_transition)
{
    static const char *const to[JOB_STATES] = {
        [JOB_CREATED] = "Ra", [JOB_RUNNING] = "Pywa", [JOB_PAUSED] = "R",
        [JOB_READY] = "swa",  [JOB_STANDBY] = "y",    [JOB_WAITING] = "pa",
        [JOB_PENDING] = "Xa", [JOB_ABORTING] = "X",   [JOB_CONCLUDED] = "n",
        [JOB_NULL] = "",
    };

    for (int from = 0; from < JOB_STATES; from++)
        expect_row("transition", job_state_name((enum job_state)from), to[from], leads_to,
                   from);
}

Test(tables, every_verb)
{
    static const char *const in[JOB_VERBS] = {
        [JOB_VERB_CANCEL] = "cRPyswp", [JOB_VERB_PAUSE] = "cRPys",
        [JOB_VERB_RESUME] = "cRPys",   [JOB_VERB_SET_SPEED] = "cRPys",
        [JOB_VERB_COMPLETE] = "ys",    [JOB_VERB_CHANGE] = "RPys",
        [JOB_VERB_FINALIZE] = "p",     [JOB_VERB_DISMISS] = "X",
    };

    for (int verb = 0; verb < JOB_VERBS; verb++)
        expect_row("verb", job_verb_name((enum job_verb)verb), in[verb], allowed_in, verb);
}

/* M-22 */
Test(tables, names_are_qmps)
{
    static const char *const states[] = {"created",   "running", "paused",  "ready",
                                         "standby",   "waiting", "pending", "aborting",
                                         "concluded", "null"};
    static const char *const verbs[] = {"cancel",   "pause",  "resume",   "set-speed",
                                        "complete", "change", "finalize", "dismiss"};

    for (int i = 0; i < JOB_STATES; i++)
        cr_expect_str_eq(job_state_name((enum job_state)i), states[i]);
    for (int i = 0; i < JOB_VERBS; i++)
        cr_expect_str_eq(job_verb_name((enum job_verb)i), verbs[i]);
}

/* Every job can end: each state but the last has a transition, and none leads away from the last
 * one. */
Test(tables, every_way_ends)
{
    for (int from = 0; from < JOB_NULL; from++) {
        bool on = false;
        for (int to = 0; to < JOB_STATES; to++)
            on |= leads_to(from, (enum job_state)to);
        cr_expect(on, "%s", job_state_name((enum job_state)from));
        cr_expect_not(leads_to(from, (enum job_state)from));
        cr_expect_not(leads_to(JOB_CONCLUDED, (enum job_state)from));
    }
}
