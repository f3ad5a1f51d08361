// What a disk can do to the daemon, put in front of libc by LD_PRELOAD, for files in one folder (FAULTS_FOLDER):
//
// - byte 0 of FAULTS_CONTROL is '1': every sync fails with EIO. 'b': every sync hangs until that byte is another.
// - FAULTS_SHADOW names a folder: what is synced is copied there, so that after `kill -9` it has what a power cut would
//   have left, and no more. A file's content is durable when the file is synced (sync_file_range does not count: it
//   survives no power cut); names, new, moved or gone, when their folder is.
//
// The shadow holds `i<inode>`, the content of a file, `d<inode>`, the names of a folder, and links that keep an inode
// from being used again. Writes go through untouched: a sync copies the file as it is then.
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static const char *folder, *shadow;
static volatile const char *control;
static pthread_mutex_t copying = PTHREAD_MUTEX_INITIALIZER;

static void broken(const char *what) {
    fprintf(stderr, "faults.c: %s: %s\n", what, strerror(errno));
    abort();
}

__attribute__((constructor)) static void begin(void) {
    folder = getenv("FAULTS_FOLDER");
    shadow = getenv("FAULTS_SHADOW");
    const char *path = getenv("FAULTS_CONTROL");
    if (!folder || !path) return;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) broken(path);
    control = mmap(NULL, 1, PROT_READ, MAP_SHARED, fd, 0);
    if (control == MAP_FAILED) broken(path);
    close(fd);
}

static int is_ours(int fd) {
    char link[64], path[PATH_MAX];
    if (!folder) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    size_t prefix = strlen(folder);
    return strncmp(path, folder, prefix) == 0 && (path[prefix] == 0 || path[prefix] == '/');
}

static void write_all(int to, const char *bytes, ssize_t length, off_t at) {
    while (length > 0) {
        ssize_t wrote = pwrite(to, bytes, length, at);
        if (wrote < 0) broken("the shadow cannot be written");
        bytes += wrote;
        length -= wrote;
        at += wrote;
    }
}

static void keep_content(int fd, ino_t inode) {
    static char buffer[1 << 20];
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/i%lu", shadow, (unsigned long)inode);
    int to = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    // Another descriptor: that of the daemon may be for writing only.
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    int from = open(path, O_RDONLY | O_CLOEXEC);
    if (to < 0 || from < 0) broken("the shadow of a file");
    off_t at = 0;
    ssize_t length;
    while ((length = pread(from, buffer, sizeof buffer, at)) > 0) {
        write_all(to, buffer, length, at);
        at += length;
    }
    if (length < 0 || ftruncate(to, at) < 0) broken("the shadow of a file");
    close(from);
    close(to);
}

static void keep_names(int fd, ino_t inode) {
    char path[PATH_MAX], made[PATH_MAX];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    snprintf(made, sizeof made, "%s/d%lu.new", shadow, (unsigned long)inode);
    DIR *from = opendir(path);
    FILE *to = fopen(made, "we");
    if (!from || !to) broken("the shadow of a folder");
    struct dirent *entry;
    while ((entry = readdir(from))) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
        fprintf(to, "%lu %c %s\n", (unsigned long)entry->d_ino, entry->d_type == DT_DIR ? 'd' : 'f', entry->d_name);
    }
    closedir(from);
    if (fclose(to)) broken("the shadow of a folder");
    snprintf(path, sizeof path, "%s/d%lu", shadow, (unsigned long)inode);
    if (rename(made, path)) broken("the shadow of a folder");
}

// What happens before a sync. Not 0: it fails.
static int meets_a_fault(int fd) {
    if (!control || !is_ours(fd)) return 0;
    while (*control == 'b') usleep(10000);
    if (*control == '1') {
        errno = EIO;
        return -1;
    }
    return 0;
}

static int synced(int fd) {
    struct stat is;
    if (meets_a_fault(fd)) return -1;
    if (!shadow || !is_ours(fd)) return 0;
    if (fstat(fd, &is)) broken("fstat");
    pthread_mutex_lock(&copying);
    if (S_ISDIR(is.st_mode)) keep_names(fd, is.st_ino);
    else keep_content(fd, is.st_ino);
    pthread_mutex_unlock(&copying);
    return 0;
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

int fsync(int fd) {
    return synced(fd) ? -1 : NEXT(fsync)(fd);
}

int fdatasync(int fd) {
    return synced(fd) ? -1 : NEXT(fdatasync)(fd);
}

int sync_file_range(int fd, off64_t at, off64_t length, unsigned int flags) {
    return meets_a_fault(fd) ? -1 : NEXT(sync_file_range)(fd, at, length, flags);
}

// A name that goes may be durable still: its inode must stand for nothing else from then on.
static void keep_inode(const char *path) {
    struct stat is;
    char kept[PATH_MAX], real[PATH_MAX];
    size_t prefix = folder ? strlen(folder) : 0;
    if (!shadow || !realpath(path, real) || strncmp(real, folder, prefix) || stat(real, &is)) return;
    snprintf(kept, sizeof kept, "%s/k%lu", shadow, (unsigned long)is.st_ino);
    if (link(real, kept) && errno != EEXIST) broken("an inode cannot be kept");
}

int unlink(const char *path) {
    keep_inode(path);
    return NEXT(unlink)(path);
}

int rename(const char *from, const char *to) {
    keep_inode(to);
    return NEXT(rename)(from, to);
}
