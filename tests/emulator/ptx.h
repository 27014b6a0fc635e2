// PTX instructions, named as in PTX with _ for every dot, results first. The driver turns `asm` statements into calls
// of these; approximate ones are exact here.
#pragma once

namespace emulated::ptx {

using u64 = unsigned long long;

EMULATED float flushed(float v) { return fabsf(v) < 1.17549435e-38f ? copysignf(0.f, v) : v; }
EMULATED void ex2_approx_ftz_f32(float& to, float from) { to = flushed(exp2f(flushed(from))); }
EMULATED void lg2_approx_ftz_f32(float& to, float from) { to = log2f(flushed(from)); }
EMULATED void rcp_approx_ftz_f32(float& to, float from) { to = flushed(1.f / flushed(from)); }
EMULATED void prefetch_global_L2(const void*) {}

EMULATED unsigned bf16(float v) {
    unsigned u = bits<unsigned>(v);
    if ((u & 0x7fffffffu) > 0x7f800000u) return 0x7fffu;
    return (u + 0x7fffu + (u >> 16 & 1)) >> 16;
}
EMULATED float from_bf16(unsigned v) { return bits<float>(v << 16); }
EMULATED unsigned f16(float v) { return bits<uint16_t>((_Float16)v); }
EMULATED float from_f16(unsigned v) { return (float)bits<_Float16>((uint16_t)v); }
EMULATED void cvt_rn_bf16x2_f32(unsigned& to, float high, float low) { to = bf16(high) << 16 | bf16(low); }
EMULATED void cvt_rn_f16x2_f32(unsigned& to, float high, float low) { to = f16(high) << 16 | f16(low); }
EMULATED void cvt_f32_f16(float& to, unsigned short from) { to = from_f16(from); }

// d (16 by 8) += a (16 by DEPTH) b (DEPTH by 8), spread over a warp: lane l holds of d columns 2 (l % 4) and the next
// of rows l / 4 and that plus 8; a and b are given as functions of a lane's record and of what it holds. One chain of
// float32 sums from the first input on, the same for every row.
struct Product {
    float d[4];
    unsigned a[4], b[2];
};
struct Tf32 {  // a: (l/4, l%4), (+8, .), (., +4), (+8, +4); b: (l%4, l/4), (+4, .)
    static constexpr int depth = 8;
    static float value(unsigned v) { return bits<float>(v & 0xffffe000u); }
    static float a(void** records, int row, int k) {
        auto* record = (const Product*)records[row % 8 * 4 + k % 4];
        return value(record->a[row / 8 + k / 4 * 2]);
    }
    static float b(void** records, int k, int column) {
        return value(((const Product*)records[column * 4 + k % 4])->b[k / 4]);
    }
};
template <float (*VALUE)(unsigned)>
struct Pairs {  // the same with two neighbours in each register
    static constexpr int depth = 16;
    static float half(unsigned v, int k) { return VALUE(k % 2 ? v >> 16 : v & 0xffffu); }
    static float a(void** records, int row, int k) {
        auto* record = (const Product*)records[row % 8 * 4 + k % 8 / 2];
        return half(record->a[row / 8 + k / 8 * 2], k);
    }
    static float b(void** records, int k, int column) {
        return half(((const Product*)records[column * 4 + k % 8 / 2])->b[k / 8], k);
    }
};
template <class Layout>
void multiply_all(void** records, unsigned) {
    float a[16][16], b[16][8];
    for (int k = 0; k < Layout::depth; k++) {
        for (int row = 0; row < 16; row++) a[row][k] = Layout::a(records, row, k);
        for (int column = 0; column < 8; column++) b[k][column] = Layout::b(records, k, column);
    }
    for (int row = 0; row < 16; row++) {
        float sums[8];
        for (int column = 0; column < 8; column++)
            sums[column] = ((Product*)records[row % 8 * 4 + column / 2])->d[row / 8 * 2 + column % 2];
        for (int k = 0; k < Layout::depth; k++)
            for (int column = 0; column < 8; column++) sums[column] += a[row][k] * b[k][column];
        for (int column = 0; column < 8; column++)
            ((Product*)records[row % 8 * 4 + column / 2])->d[row / 8 * 2 + column % 2] = sums[column];
    }
}
template <class Layout>
EMULATED void multiply(Product& record) {
    meet("a matrix product", false, 0xffffffffu, &record, multiply_all<Layout>);
}

struct Matrices {  // what ldmatrix gives: lane l's row is row l % 8 of matrix l / 8
    unsigned row[4], v[4];
};
inline void load_matrices_all(void** records, unsigned) {
    for (int lane = 0; lane < 32; lane++)
        for (int i = 0; i < 4; i++)
            ((Matrices*)records[lane])->v[i] = ((Matrices*)records[i * 8 + lane / 4])->row[lane % 4];
}
EMULATED void ldmatrix_sync_aligned_m8n8_x4_shared_b16(unsigned& x, unsigned& y, unsigned& z, unsigned& w,
                                                       unsigned at) {
    uint4 row = *(const uint4*)(here->dynamic_shared + at);
    Matrices record = {{row.x, row.y, row.z, row.w}};
    meet("ldmatrix", false, 0xffffffffu, &record, load_matrices_all);
    x = record.v[0], y = record.v[1], z = record.v[2], w = record.v[3];
}

using Bf16 = Pairs<from_bf16>;
using F16 = Pairs<from_f16>;

EMULATED void mma_sync_aligned_m16n8k8_row_col_f32_tf32_tf32_f32(float& d0, float& d1, float& d2, float& d3,
                                                                 unsigned a0, unsigned a1, unsigned a2, unsigned a3,
                                                                 unsigned b0, unsigned b1, float c0, float c1,
                                                                 float c2, float c3) {
    Product record = {{c0, c1, c2, c3}, {a0, a1, a2, a3}, {b0, b1}};
    multiply<Tf32>(record);
    d0 = record.d[0], d1 = record.d[1], d2 = record.d[2], d3 = record.d[3];
}

#define PRODUCT(type, layout)                                                                                          \
    EMULATED void mma_sync_aligned_m16n8k16_row_col_f32_##type##_##type##_f32(                                         \
        float& d0, float& d1, float& d2, float& d3, unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0,   \
        unsigned b1) {                                                                                                 \
        Product record = {{d0, d1, d2, d3}, {a0, a1, a2, a3}, {b0, b1}};                                               \
        multiply<layout>(record);                                                                                      \
        d0 = record.d[0], d1 = record.d[1], d2 = record.d[2], d3 = record.d[3];                                        \
    }
PRODUCT(bf16, Bf16)
PRODUCT(f16, F16)
#undef PRODUCT

// Barriers and asynchronous copies; an address in shared memory counts from the first dynamic byte.
EMULATED u64* barrier_of(unsigned address) { return (u64*)(here->dynamic_shared + address); }
EMULATED void mbarrier_init_shared_cta_b64(unsigned at, unsigned arrivals) { barrier_init(barrier_of(at), arrivals); }
EMULATED void mbarrier_arrive_shared_cta_b64(unsigned at) { barrier_arrive(barrier_of(at), 0); }
EMULATED void mbarrier_arrive_expect_tx_shared_cta_b64(unsigned at, unsigned bytes) {
    barrier_arrive(barrier_of(at), bytes);
}
EMULATED void mbarrier_try_wait_parity_shared_cta_b64(unsigned& done, unsigned at, unsigned parity) {
    barrier_wait(barrier_of(at), parity);
    done = 1;
}
EMULATED void cp_async_bulk_shared_cluster_global_mbarrier_complete_tx_bytes(unsigned to, const void* from,
                                                                             unsigned bytes, unsigned at) {
    bulk_copy(here->dynamic_shared + to, from, bytes, barrier_of(at));
}
EMULATED void bar_sync(int id, int threads) { sync_named(id, threads); }
EMULATED void fence_mbarrier_init_release_cluster() {}
EMULATED void fence_proxy_async_shared_cta() {}

// Between blocks.
EMULATED void st_relaxed_gpu_global_u64(void* to, u64 v) { send(to, v, 8); }
EMULATED void ld_relaxed_gpu_global_v2_u64(u64& a, u64& b, const void* from) {
    u64 v[2];
    receive(v, from, 8, 2);
    a = v[0], b = v[1];
}

}  // namespace emulated::ptx
