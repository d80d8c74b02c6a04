/* Loaded into a store's server, to replace its time, randomness and disk by the simulation's. The file PAGE has two
   numbers, Unix time in microseconds, and whether the disk is full. Without headers, so that a bare compiler suffices. */

#define PAGE "SIMULATED_PAGE"
enum { READ_ONLY = 0, SHARED = 1, KILL_WITH_PARENT = 1, SIGKILL = 9, NO_SPACE = 28, REGULAR = 0100000, FORMAT = 0170000 };

extern char *getenv(const char *);
extern int open(const char *, int, ...), prctl(int, ...), strcmp(const char *, const char *), *__errno_location(void);
extern void *mmap(void *, unsigned long, int, int, int, long), *fopen(const char *, const char *);
extern int statx(int, const char *, int, unsigned, void *);
extern long writev(int, const void *, int);

static volatile const long *page;

__attribute__((constructor)) static void begin(void) {
    prctl(KILL_WITH_PARENT, SIGKILL);
    page = mmap(0, 4096, SHARED, SHARED, open(getenv(PAGE), READ_ONLY), 0);
}

/* The monotonic clock is stopped, so nothing happens except through commands. */
int clock_gettime(int clock, long *spec) {
    long now = clock == 0 || clock == 5 ? page[0] : 1000000;
    spec[0] = now / 1000000;
    spec[1] = now % 1000000 * 1000;
    return 0;
}

int gettimeofday(long *value, void *zone) {
    (void)zone;
    value[0] = page[0] / 1000000;
    value[1] = page[0] % 1000000;
    return 0;
}

long time(long *value) {
    long now = page[0] / 1000000;
    if (value) *value = now;
    return now;
}

int getpid(void) { return 1; }

/* Without these files, it takes the clocks and the random seeds from the functions above. */
void *fopen64(const char *path, const char *mode) {
    return strcmp(path, "/dev/urandom") && strcmp(path, "/proc/cpuinfo") ? fopen(path, mode) : 0;
}

long write(int file, const void *data, unsigned long size) {
    struct { unsigned before[7]; unsigned short mode; char after[226]; } about;
    const void *parts[2] = {data, (const void *)size};
    if (page[1] && !statx(file, "", 0x1000, 2, &about) && (about.mode & FORMAT) == REGULAR) {
        *__errno_location() = NO_SPACE;
        return -1;
    }
    return writev(file, parts, 1);
}
