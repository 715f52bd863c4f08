/* Process 1 of a User-mode Linux: what becomes of a program's time. Prints a line for each matter, then spins. */
#include <signal.h>
#include <stdio.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>
#include <fcntl.h>

static volatile sig_atomic_t signals;

static void count(int signal) { (void)signal; signals++; }

static void spin(long rounds) {
    for (volatile long i = 0; i < rounds; i++)
        ;
}

/* Without a system call: only a signal ends it. */
static void interval(int which, int signal, const char *name) {
    struct itimerval every = {{0, 20000}, {0, 20000}}, never = {0};
    struct sigaction action = {.sa_handler = count};
    sigaction(signal, &action, NULL);
    signals = 0;
    setitimer(which, &every, NULL);
    while (signals < 3)
        ;
    setitimer(which, &never, NULL);
    printf("%s RINGS\n", name);
}

int main(void) {
    mount("dev", "/dev", "devtmpfs", 0, NULL);
    int terminal = open("/dev/tty0", O_WRONLY);
    dup2(terminal, 1);
    setvbuf(stdout, NULL, _IONBF, 0);

    interval(ITIMER_REAL, SIGALRM, "REAL");
    interval(ITIMER_VIRTUAL, SIGVTALRM, "VIRTUAL");
    interval(ITIMER_PROF, SIGPROF, "PROF");

    pid_t hogs[2];
    for (int i = 0; i < 2; i++)
        if (!(hogs[i] = fork()))
            for (;;)
                spin(1000000);
    sleep(1); /* comes back although both want the CPU */
    for (int i = 0; i < 2; i++) {
        struct rusage used;
        kill(hogs[i], SIGKILL);
        wait4(hogs[i], NULL, 0, &used);
        printf("HOG %ld %ld\n", used.ru_utime.tv_sec * 1000000 + used.ru_utime.tv_usec,
               used.ru_stime.tv_sec * 1000000 + used.ru_stime.tv_usec);
    }

    printf("SPIN\n");
    for (;;)
        spin(1000000);
}
