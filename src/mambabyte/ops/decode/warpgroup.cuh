// Products of a warpgroup, four warps together, whose operands come from shared memory without passing registers:
// wgmma, which only compute capability 9.0 has (compiled for sm_90a). Its sums over 16 inputs are those of `mma`, bit
// for bit.
#pragma once

// The descriptor of rows in blocks as those of weights: 8 inputs lie 128 bytes after the 8 before them, 8 rows a block
// after the 8 before them (PTX, matrix descriptor; no swizzle).
__device__ __forceinline__ u64 matrix_of(const void* blocks) {
    return shared_address(blocks) / 16 | (u64)(TILE * 16 / 16) << 16 | (u64)(BLOCK_BYTES / 16) << 32;
}
constexpr int NEXT_INPUTS = 2 * TILE * 16 / 16;  // what a step of 16 inputs adds to it

#define NUMBERS_8 "%0, %1, %2, %3, %4, %5, %6, %7"
#define NUMBERS_16 NUMBERS_8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define NUMBERS_32                                                                                                     \
    NUMBERS_16 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define NUMBERS_64                                                                                                     \
    NUMBERS_32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, "     \
               "%51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define FLOATS_4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define FLOATS_8(i) FLOATS_4(i), FLOATS_4(i + 4)
#define FLOATS_16(i) FLOATS_8(i), FLOATS_8(i + 8)
#define FLOATS_32(i) FLOATS_16(i), FLOATS_16(i + 16)
#define FLOATS_64(i) FLOATS_32(i), FLOATS_32(i + 32)
#if IO == 0
#define PAIR_OF_TYPES "bf16.bf16"
#else
#define PAIR_OF_TYPES "f16.f16"
#endif

// d = a b or, with `add`, d += a b: 64 columns by 2 COUNT outputs over 16 inputs; a warp has 16 columns, of each 8
// outputs what `mma` gives it. Begun here, ready after `finish_products`.
#define PRODUCT(outputs, count, a_number, b_number, add_number)                                                        \
    __device__ __forceinline__ void begin_product(float (&d)[count], u64 a, u64 b, int add) {                          \
        asm volatile("{ .reg .pred p; setp.ne.b32 p, " add_number ", 0; wgmma.mma_async.sync.aligned.m64n" outputs     \
                     "k16.f32." PAIR_OF_TYPES " {" NUMBERS_##count "}, " a_number ", " b_number ", p, 1, 1, 0, 0; }"   \
                     : FLOATS_##count(0)                                                                               \
                     : "l"(a), "l"(b), "r"(add));                                                                      \
    }
PRODUCT("16", 8, "%8", "%9", "%10")
PRODUCT("32", 16, "%16", "%17", "%18")
PRODUCT("64", 32, "%32", "%33", "%34")
PRODUCT("128", 64, "%64", "%65", "%66")

// Before products that follow other use of the registers of their sums.
__device__ __forceinline__ void fence_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
// Waits for all that this warp has begun.
__device__ __forceinline__ void finish_products() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
}
