/* Calls that block are counted, and end the process that waits too long. Ranks are processes of this program here, and
 * this program is their launcher: test_guard RANK begins one. */
#include "src/comm/guard.h"

#include <dirent.h>
#include <fcntl.h>
#include <semaphore.h>
#include <setjmp.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "error.h"

static const double TIMEOUT_SECONDS = 0.8; /* hence a look every tenth of a second */

/* --- a rank ------------------------------------------------------------------------------------------- */

static sem_t looks;
static sem_t *look_waits; /* NULL: it does not */

/* In place of the C library's: a look begins by listing the threads of the launcher. The test is told of each. */
DIR *opendir(const char *path)
{
    int directory = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    sem_post(&looks);
    if (write(STDOUT_FILENO, ".", 1) != 1)
        _exit(9);
    if (look_waits != NULL)
        sem_wait(look_waits);
    return directory >= 0 ? fdopendir(directory) : NULL;
}

/* A call that ends while the guard looks around. */
static void end_amid_look(struct guard *guard)
{
    static sem_t ended;
    sem_init(&ended, 0, 0);
    look_waits = &ended;
    guard_begin(guard, "a call that ended", 100);
    sem_wait(&looks);
    guard_end(guard);
    sem_post(&ended);
}

static void be_stopped(struct guard *guard)
{
    guard_begin(guard, "a call of a process that was stopped", 1);
    sem_wait(&looks); /* now time counts */
    raise(SIGSTOP);
    while (sem_trywait(&looks) == 0) {
    }
    sem_wait(&looks);
    sem_wait(&looks); /* the one before has counted by now */
    guard_end(guard);
}

static void wait_long(struct guard *guard)
{
    guard_begin(guard, "a call", 30);
    pause();
}

static void wait_too_long(struct guard *guard)
{
    guard_begin(guard, "a call that takes too long", 0.2);
    pause();
}

/* A launcher that starts a rank, and is stopped. */
static void launch(struct guard *guard)
{
    pid_t rank;
    int status;
    char *const words[] = {"test_guard", "wait_long", NULL};
    (void)guard;
    if (posix_spawn(&rank, "/proc/self/exe", NULL, NULL, words, environ) != 0)
        _exit(9);
    close(STDOUT_FILENO);
    close(STDERR_FILENO);
    raise(SIGSTOP);
    waitpid(rank, &status, 0);
    _exit(WEXITSTATUS(status));
}

static const struct {
    const char *name;
    void (*wait)(struct guard *guard);
} ranks[] = {{"end_amid_look", end_amid_look},
             {"be_stopped", be_stopped},
             {"wait_long", wait_long},
             {"wait_too_long", wait_too_long},
             {"launch", launch}};

static int be_rank(const char *name)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* where the test fails */
    sem_init(&looks, 0, 0);
    for (size_t i = 0; i < sizeof ranks / sizeof *ranks; i++)
        if (strcmp(name, ranks[i].name) == 0) {
            struct guard *guard = guard_open(TIMEOUT_SECONDS);
            ranks[i].wait(guard);
            guard_close(guard);
            return 0;
        }
    return 9;
}

/* --- the launcher ------------------------------------------------------------------------------------- */

struct rank {
    pid_t process;
    int looks; /* a byte each */
    int says;  /* what goes to standard error */
};

static struct rank start(const char *name)
{
    struct rank rank;
    int looks_ends[2], says_ends[2];
    posix_spawn_file_actions_t actions;
    char *const words[] = {"test_guard", (char *)name, NULL};
    assert_int_equal(pipe2(looks_ends, O_CLOEXEC), 0);
    assert_int_equal(pipe2(says_ends, O_CLOEXEC), 0);
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, looks_ends[1], STDOUT_FILENO);
    posix_spawn_file_actions_adddup2(&actions, says_ends[1], STDERR_FILENO);
    assert_int_equal(posix_spawn(&rank.process, "/proc/self/exe", &actions, NULL, words, environ), 0);
    posix_spawn_file_actions_destroy(&actions);
    close(looks_ends[1]);
    close(says_ends[1]);
    rank.looks = looks_ends[0];
    rank.says = says_ends[0];
    return rank;
}

/* Whether it looks so many times more, and has not ended before. */
static bool looks_on(const struct rank *rank, int times)
{
    char look;
    while (times > 0 && read(rank->looks, &look, 1) == 1)
        times--;
    return times == 0;
}

/* It ends with this code, or 128 and the signal that ends it, and says what holds `words`; NULL: it says nothing. */
static void assert_ends(const struct rank *rank, int code, const char *words)
{
    int status;
    char said[1000];
    size_t length = 0;
    for (ssize_t got; (got = read(rank->says, said + length, sizeof said - 1 - length)) > 0;)
        length += (size_t)got;
    said[length] = '\0';
    assert_int_equal(waitpid(rank->process, &status, 0), rank->process);
    close(rank->looks);
    close(rank->says);
    if (words == NULL)
        assert_string_equal(said, "");
    else if (strstr(said, words) == NULL)
        fail_msg("'%s' lacks '%s'", said, words);
    assert_int_equal(WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), code);
}

static void test_a_call_may_end_while_the_guard_looks(void **state)
{
    (void)state;
    struct rank rank = start("end_amid_look");
    assert_ends(&rank, 0, NULL);
}

static void test_time_in_which_a_process_was_stopped_hardly_counts(void **state)
{
    (void)state;
    int status;
    struct rank rank = start("be_stopped");
    assert_int_equal(waitpid(rank.process, &status, WUNTRACED), rank.process);
    assert_true(WIFSTOPPED(status));
    usleep(1200000);
    kill(rank.process, SIGCONT);
    assert_ends(&rank, 0, NULL);
}

/* The first speaks for all, so the others wait for longer, also when it has gone. */
static void test_others_leave_it_to_the_first_to_speak(void **state)
{
    (void)state;
    struct rank first = start("wait_long");
    assert_true(looks_on(&first, 1)); /* now it is a rank by its environment, too */
    struct rank second = start("wait_too_long");
    assert_true(first.process < second.process);
    assert_true(looks_on(&second, 5)); /* of a tenth of a second each, and of two at most */
    kill(first.process, SIGKILL);
    assert_ends(&first, 128 + SIGKILL, NULL);
    assert_true(looks_on(&second, 4));
    kill(second.process, SIGKILL);
    assert_ends(&second, 128 + SIGKILL, NULL);
    struct rank alone = start("wait_too_long");
    assert_false(looks_on(&alone, 5));
    assert_ends(&alone, EXIT_PEER_LOST, "a call that takes too long has taken 0.2 s");
}

static void test_a_launcher_that_is_stopped_is_lost(void **state)
{
    (void)state;
    struct rank launcher = start("launch");
    assert_false(looks_on(&launcher, 30)); /* but some eight times */
    kill(launcher.process, SIGCONT);
    assert_ends(&launcher, EXIT_PEER_LOST, "lost the process of mpirun on host ");
}

int main(int argc, char **argv)
{
    if (argc > 1)
        return be_rank(argv[1]);
    setenv("OMPI_COMM_WORLD_RANK", "0", 1); /* of those that are started */
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_call_may_end_while_the_guard_looks),
        cmocka_unit_test(test_time_in_which_a_process_was_stopped_hardly_counts),
        cmocka_unit_test(test_others_leave_it_to_the_first_to_speak),
        cmocka_unit_test(test_a_launcher_that_is_stopped_is_lost),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
