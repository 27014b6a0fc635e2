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

// The same by four warps for 64 rows, with operands in shared memory: each lane makes what `multiply_all` would give
// it, when it waits for that. Descriptors (PTX, matrix descriptor) without a swizzle.
struct Matrix {
    const char* first;
    size_t next_inputs, next_rows;  // bytes to the other 8 inputs, and to the next 8 rows
    explicit Matrix(u64 descriptor) {
        auto field = [=](int bit) { return (descriptor >> bit & 0x3fff) * 16; };
        if (descriptor >> 49) fail("a matrix descriptor %llx with a swizzle or a base offset", descriptor);
        first = here->dynamic_shared + field(0), next_inputs = field(16), next_rows = field(32);
    }
    template <class Layout>
    void row(float (&values)[16], int which) const {
        for (int half = 0; half < 2; half++) {
            uint4 v = *(const uint4*)(first + which / 8 * next_rows + which % 8 * 16 + half * next_inputs);
            const unsigned pairs[] = {v.x, v.y, v.z, v.w};
            for (int k = 0; k < 8; k++) values[half * 8 + k] = Layout::half(pairs[k / 2], k);
        }
    }
};
struct GroupProduct {
    float* d;
    int tiles, add;
    u64 a, b;
};
template <class Layout>
void multiply_later(const void* record) {
    GroupProduct p = *(const GroupProduct*)record;
    Matrix a(p.a), b(p.b);
    int warp = here->thread.x / 32 % 4, lane = here->thread.x % 32;
    float rows[2][16], outputs[16];
    for (int half = 0; half < 2; half++) a.row<Layout>(rows[half], warp * 16 + half * 8 + lane / 4);
    for (int i = 0; i < p.tiles * 2; i++) {
        b.row<Layout>(outputs, i / 2 * 8 + lane % 4 * 2 + i % 2);
        for (int half = 0; half < 2; half++) {
            float& d = p.d[i / 2 * 4 + half * 2 + i % 2];
            float sum = p.add ? d : 0.f;
            for (int k = 0; k < 16; k++) sum += rows[half][k] * outputs[k];
            d = sum;
        }
    }
}
template <class Layout, int COUNT, class... Operands>
EMULATED void multiply_group(float& first, Operands&&... operands) {
    static_assert(sizeof...(operands) == COUNT + 2, "the sums, two descriptors, and whether they are added to");
    const void* places[] = {&first, &operands...};
    for (int i = 0; i < COUNT; i++)
        if (places[i] != &first + i) fail("the emulator takes sums of a warpgroup's product that lie together");
    GroupProduct record = {&first, COUNT / 4, *(const int*)places[COUNT + 2], *(const u64*)places[COUNT],
                           *(const u64*)places[COUNT + 1]};
    meet("a product of a warpgroup", false, 0xffffffffu, &record, nothing);
    begin_later(multiply_later<Layout>, &record, sizeof record);
}
#define GROUP_PRODUCT(outputs, type, layout)                                                                           \
    template <class... Operands>                                                                                       \
    EMULATED void wgmma_mma_async_sync_aligned_m64n##outputs##k16_f32_##type##_##type(Operands&&... operands) {        \
        multiply_group<layout, outputs / 2>(operands...);                                                              \
    }
#define GROUP_PRODUCTS(outputs) GROUP_PRODUCT(outputs, bf16, Bf16) GROUP_PRODUCT(outputs, f16, F16)
GROUP_PRODUCTS(16)
GROUP_PRODUCTS(32)
GROUP_PRODUCTS(64)
GROUP_PRODUCTS(128)
#undef GROUP_PRODUCTS
#undef GROUP_PRODUCT
EMULATED void wgmma_fence_sync_aligned() {}
EMULATED void wgmma_commit_group_sync_aligned() { commit_begun(); }
EMULATED void wgmma_wait_group_sync_aligned() {
    finish_committed();
    char record;
    meet("wgmma.wait_group", true, 0xffffffffu, &record, nothing);
}

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
EMULATED void cp_async_cg_shared_global(unsigned to, const void* from, int bytes, int valid) {
    async_copy(here->dynamic_shared + to, from, bytes, valid);
}
EMULATED void cp_async_ca_shared_global(unsigned to, const void* from, int bytes, int valid) {
    async_copy(here->dynamic_shared + to, from, bytes, valid);
}
EMULATED void cp_async_commit_group() { async_commit(); }
EMULATED void cp_async_wait_group(int open) { async_wait(open); }
EMULATED void bar_sync(int id, int threads) { sync_named(id, threads); }
EMULATED void fence_mbarrier_init_release_cluster() {}
EMULATED void fence_proxy_async_shared_cta() {}

EMULATED void st_global_v4_f32(void* to, float a, float b, float c, float d) { *(float4*)to = {a, b, c, d}; }

// Between blocks.
EMULATED void st_relaxed_gpu_global_u64(void* to, u64 v) { send(to, v, 8); }
EMULATED void ld_relaxed_gpu_global_v2_u64(u64& a, u64& b, const void* from) {
    u64 v[2];
    receive(v, from, 8, 2);
    a = v[0], b = v[1];
}

}  // namespace emulated::ptx
