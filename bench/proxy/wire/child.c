/* Run a program bound to this one's parent: `child CPUS COMMAND ...`.
 *
 * It computes on CPUS only (`0`, `1,2`; `-` is any), may open as many files as the hard limit
 * allows, and is killed when whoever started it ends, however that ends.
 */
#define _GNU_SOURCE
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

#include "common.h"

static void stay_on(char *cpus)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    for (char *cpu = strtok(cpus, ","); cpu != NULL; cpu = strtok(NULL, ","))
        CPU_SET(number_of(cpu, 0), &set);
    if (sched_setaffinity(0, sizeof set, &set) < 0)
        die("sched_setaffinity");
}

int main(int count, char **arguments)
{
    if (count < 3) {
        fprintf(stderr, "usage: child CPUS COMMAND ...\n");
        return 2;
    }
    if (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0)
        die("prctl");
    if (strcmp(arguments[1], "-") != 0)
        stay_on(arguments[1]);
    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files) < 0)
        die("getrlimit");
    files.rlim_cur = files.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &files) < 0)
        die("setrlimit");
    execvp(arguments[2], arguments + 2);
    die(arguments[2]);
}
