// Memory read bandwidth: each thread sums its part of a buffer far larger than the caches; prints GB/s, best of five.
//   cc -O3 -march=native -pthread bench/bandwidth.c -o bandwidth && ./bandwidth 2
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define BYTES ((size_t)1 << 30)

struct part {
    const uint64_t *words;
    size_t count;
    uint64_t sum;
};

static void *sum_part(void *argument) {
    struct part *part = argument;
    uint64_t sum[8] = {0};
    for (size_t i = 0; i + 8 <= part->count; i += 8)
        for (size_t lane = 0; lane < 8; lane++) sum[lane] += part->words[i + lane];
    for (size_t lane = 0; lane < 8; lane++) part->sum += sum[lane];
    return NULL;
}

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

int main(int argc, char **argv) {
    int threads = argc > 1 ? atoi(argv[1]) : 1;
    if (threads < 1 || threads > 256) return fprintf(stderr, "usage: bandwidth THREADS\n"), 2;
    uint64_t *words = malloc(BYTES);
    if (!words) return fprintf(stderr, "no memory\n"), 1;
    memset(words, 1, BYTES);
    double best = 0;
    uint64_t check = 0;
    for (int round = 0; round < 5; round++) {
        pthread_t handles[256];
        struct part parts[256];
        size_t share = BYTES / 8 / (size_t)threads;
        double start = seconds();
        for (int i = 0; i < threads; i++) {
            parts[i] = (struct part){words + (size_t)i * share, share, 0};
            pthread_create(&handles[i], NULL, sum_part, &parts[i]);
        }
        for (int i = 0; i < threads; i++) {
            pthread_join(handles[i], NULL);
            check += parts[i].sum;
        }
        double rate = (double)share * 8 * threads / (seconds() - start) / 1e9;
        if (rate > best) best = rate;
    }
    printf("%.2f\n", best);
    return check == 0;
}
