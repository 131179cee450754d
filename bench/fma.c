/* Peak of float32 fused multiply-adds, GFLOP/s, of the number of threads in argv[1]: the ceiling that bench/student.py
 * prints fractions of. Twelve independent chains hide the latency of an FMA and stay in registers. */
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>

#ifdef __AVX512F__
enum { LANES = 16 };
#elif defined(__AVX2__)
enum { LANES = 8 };
#else
enum { LANES = 4 };
#endif
enum { CHAINS = 12, ROUNDS = 1000000, ATTEMPTS = 40 };
typedef float Vector __attribute__((vector_size(4 * LANES)));

static float chains(float x) {
  Vector b = (Vector){0} + x, c = (Vector){0} + 1e-3f;
  Vector a0 = b, a1 = b, a2 = b, a3 = b, a4 = b, a5 = b, a6 = b, a7 = b, a8 = b, a9 = b, a10 = b, a11 = b;
  for (int round = 0; round < ROUNDS; ++round) {
    a0 = a0 * b + c, a1 = a1 * b + c, a2 = a2 * b + c, a3 = a3 * b + c, a4 = a4 * b + c, a5 = a5 * b + c;
    a6 = a6 * b + c, a7 = a7 * b + c, a8 = a8 * b + c, a9 = a9 * b + c, a10 = a10 * b + c, a11 = a11 * b + c;
    /* Without this the compiler sees twelve equal chains and computes one. */
    __asm__ volatile("" : "+v"(a0), "+v"(a1), "+v"(a2), "+v"(a3), "+v"(a4), "+v"(a5));
    __asm__ volatile("" : "+v"(a6), "+v"(a7), "+v"(a8), "+v"(a9), "+v"(a10), "+v"(a11));
  }
  return (a0 + a1 + a2 + a3 + a4 + a5 + a6 + a7 + a8 + a9 + a10 + a11)[0];
}

int main(int argc, char** argv) {
  int threads = argc > 1 ? atoi(argv[1]) : 1;
  double best = 0;
  volatile float sink = 0;
  for (int attempt = 0; attempt < ATTEMPTS; ++attempt) {
    float sum = 0;
    double start = omp_get_wtime();
#pragma omp parallel num_threads(threads) reduction(+ : sum)
    sum += chains(0.999f);
    double gflops = 2e-9 * LANES * CHAINS * ROUNDS * threads / (omp_get_wtime() - start);
    sink = sum;
    if (gflops > best) best = gflops;
  }
  (void)sink;
  printf("%.2f\n", best);
  return 0;
}
