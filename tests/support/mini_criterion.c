/* SPDX-License-Identifier: BSD-3-Clause */
/* Runs the tests in builds where Criterion can't start; see criterion/criterion.h. */
#include <criterion/criterion.h>

#ifdef USE_MINI_CRITERION

#include <fnmatch.h>
#include <stdarg.h>
#include <sys/wait.h>
#include <unistd.h>

#define SKIPPED 77

static struct mini_test *tests, *suites;
static bool failed; /* in the child process of a test: an expectation wasn't met */

void mini_register(struct mini_test *test)
{
    struct mini_test **end = &tests;

    while (*end)
        end = &(*end)->next;
    *end = test;
}

void mini_register_suite(struct mini_test *suite)
{
    suite->next = suites;
    suites = suite;
}

void mini_report(bool fatal, const char *file, int line, const char *what, const char *fmt,
                 ...)
{
    va_list ap;

    fprintf(stderr, "[----] %s:%d: %s:", file, line, what);
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fputc('\n', stderr);
    failed = true;
    if (fatal)
        _exit(1);
}

void mini_skip(const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fputc('\n', stderr);
    _exit(SKIPPED);
}

static const struct mini_test *suite_of(const struct mini_test *test)
{
    static const struct mini_test none;

    for (const struct mini_test *s = suites; s; s = s->next)
        if (strcmp(s->suite, test->suite) == 0)
            return s;
    return &none;
}

static void run_here(const struct mini_test *test, void *param)
{
    const struct mini_test *suite = suite_of(test);
    double timeout = test->timeout ? test->timeout : suite->timeout;

    alarm(timeout ? (unsigned)timeout : 600);
    if (suite->init)
        suite->init();
    if (test->init)
        test->init();
    if (test->run_with)
        test->run_with(param);
    else
        test->run();
    if (test->fini)
        test->fini();
    if (suite->fini)
        suite->fini();
    exit(failed ? 1 : 0);
}

struct count {
    unsigned tested, passing, failing, crashing, skipped;
};

static void run_one(const struct mini_test *test, void *param, struct count *count)
{
    const struct mini_test *suite = suite_of(test);
    int status, wanted = test->signal ? test->signal : suite->signal;

    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0)
        run_here(test, param);
    if (pid < 0 || waitpid(pid, &status, 0) != pid)
        abort();
    if (WIFEXITED(status) && WEXITSTATUS(status) == SKIPPED) {
        count->skipped++;
        fprintf(stderr, "[SKIP] %s::%s\n", test->suite, test->test);
        return;
    }
    count->tested++;
    if (WIFSIGNALED(status) ? WTERMSIG(status) == wanted
                            : !wanted && WEXITSTATUS(status) == test->exit_code) {
        count->passing++;
        return;
    }
    *(WIFSIGNALED(status) ? &count->crashing : &count->failing) += 1;
    fprintf(stderr, "[FAIL] %s::%s (%s %d)\n", test->suite, test->test,
            WIFSIGNALED(status) ? "signal" : "exit code",
            WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
}

static void run_all_of(const struct mini_test *test, struct count *count)
{
    if (!test->params) {
        run_one(test, NULL, count);
        return;
    }
    struct mini_params p = test->params();
    for (size_t i = 0; i < p.n; i++)
        run_one(test, (char *)p.array + i * p.size, count);
}

/* Supports --filter SUITE/TEST (patterns) and ignores Criterion's other options. */
int main(int argc, char **argv)
{
    const char *filter = "*";
    struct count count = {0};

    for (int i = 1; i + 1 < argc; i++)
        if (strcmp(argv[i], "--filter") == 0)
            filter = argv[i + 1];
    for (const struct mini_test *t = tests; t; t = t->next) {
        char name[256];
        snprintf(name, sizeof name, "%s/%s", t->suite, t->test);
        if (!t->disabled && fnmatch(filter, name, 0) == 0)
            run_all_of(t, &count);
    }
    fprintf(stderr,
            "[====] Synthesis: Tested: %u | Passing: %u | Failing: %u | Crashing: %u\n",
            count.tested, count.passing, count.failing, count.crashing);
    return count.failing || count.crashing;
}

#else
/* C doesn't allow an empty translation unit. */
typedef int mini_criterion_is_not_used;
#endif
