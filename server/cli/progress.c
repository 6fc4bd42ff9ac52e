/* SPDX-License-Identifier: BSD-3-Clause */
/* Shows the progress of a command. */
#include "progress.h"

#include <signal.h>
#include <stdio.h>

#include "base/compiler.h"

/* Percent between two outputs. */
#define STEP 1.0

static struct {
    bool active, shown;
    double from, to; /* the part of the whole that is being done */
    double percent, last;
} progress;

static volatile sig_atomic_t asked;

static void note_question(int signal_number)
{
    (void)signal_number;
    asked = 1;
}

void progress_begin(bool shown)
{
    progress.active = true;
    progress.shown = shown;
    progress.from = progress.percent = progress.last = 0;
    progress.to = 1;
    if (!shown)
        sigaction(SIGUSR1,
                  &(struct sigaction){.sa_handler = note_question, .sa_flags = SA_RESTART},
                  NULL);
    progress_report(0, 1);
}

void progress_part(double from, double to)
{
    progress.from = from;
    progress.to = to;
}

static void show(void)
{
    double percent = progress.percent;

    if (progress.shown) {
        if (percent > 0 && percent < 100 && percent <= progress.last + STEP)
            return;
        progress.last = percent;
        printf("    (%3.2f/100%%)\r", percent);
        fflush(stdout);
    } else if (asked) {
        asked = 0;
        fprintf(stderr, "    (%3.2f/100%%)\n", percent);
    }
}

void progress_report(uint64_t done, uint64_t total)
{
    double part = total ? (double)MIN(done, total) / (double)total : 1;
    double percent = 100 * (progress.from + part * (progress.to - progress.from));

    if (!progress.active || percent < progress.percent)
        return;
    progress.percent = percent;
    show();
}

void progress_end(bool complete)
{
    if (!progress.active)
        return;
    progress_part(0, 1);
    if (complete)
        progress_report(1, 1);
    progress.active = false;
    if (!progress.shown)
        return;
    putchar('\n');
    fflush(stdout);
}
