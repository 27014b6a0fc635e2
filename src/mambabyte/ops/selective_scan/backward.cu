// Backward selective scan: all gradients of scan_forward from dy, the inputs, and the states that the forward kept
// every CHUNK rows.
//
// From the host: what layout.cuh takes, CHUNK, GROUP, TILE (rows between checkpoints, finished together, in registers),
// MIN_BLOCKS and SHARED_BYTES.
//
// With g_t = dL/dh_t before row t's own share:  g += dy C;  dB += g s x;  dC += dy h;  d(s x) += g . B;  g *= a;  dA +=
// g h_prev s; ds += g h_prev . A. A warp walks chunks from the last to the first. In a chunk it (1) runs the states
// forward again, keeping them at the start of every TILE rows in shared memory, and (2) tile by tile, backwards,
// recomputes states and decays once more, now into registers, and walks back over them. Sums over states (y, g . B, g
// h_prev . A) go through shared memory to the quads, which finish dx, ddt and dz. Sums over channels (dB, dC) are taken
// over the lanes of the warp (`sum_channels`), over the warps of the block in shared memory, and over blocks by
// `scan_sum_blocks`: always in the same order, so gradients are the same bits in every run.

using Burst = Quads<GROUP>;
constexpr int PASSES = Burst::PASSES;
// Rows of x and dt that are on their way at once: a lane has at most 64 registers for them.
constexpr int STAGED = CHUNK / ROWS_PER_PASS * sizeof(io4) > 128 ? CHUNK / 2 : CHUNK;
using StageBurst = Quads<STAGED>;
constexpr int TILES = CHUNK / TILE;
static_assert(CHUNK % GROUP == 0 && GROUP % TILE == 0 && CHUNK <= 32, "a chunk is whole groups, a group whole tiles");

struct Warp {
    float4 start[TILES][CHANNELS][32];  // the states before each tile, as the lanes hold them
    float2 step[CHUNK][STEP_ROW];       // s and s x
    float dy[GROUP][WARP_CHANNELS];     // gradient of what is gated
    float y[GROUP][PARTIAL_ROW], dsx[GROUP][PARTIAL_ROW],
        ds[GROUP][PARTIAL_ROW];  // the parts' shares of C . h, g . B, g h_prev . A
    float sums[CHUNK][SUMS];
};
struct Shared {
    Warp warp[WARPS];
    float4 B[CHUNK][PARTS], C[CHUNK][PARTS];
    unsigned starts;  // a bit a row of the chunk: whether a document starts there

    __device__ __forceinline__ unsigned starts_within(int t0) const { return starts >> t0 & (1u << TILE) - 1; }
};
static_assert(sizeof(Shared) <= SHARED_BYTES, "the host computed too little shared memory");

struct Sequence {
    Rows x, dt, z, dy, B, C;
    io_t *dx, *ddt, *y;  // contiguous; y may be null
    Rows dz;
    const float *A, *D, *dt_bias;
    const unsigned char* resets;
    i64 L, E;
};

// What the rows of a tile need. Reads of shared memory come before the arithmetic and writes after it: a write in
// between would keep the compiler from moving later rows up, and one or two warps a scheduler cannot hide the latencies
// that then remain.
struct Operands {
    Step step[TILE];
    float4 B[TILE];
    unsigned starts;

    __device__ __forceinline__ void load(const Shared& shared, const Warp& warp, int t0, const Lane& me) {
#pragma unroll
        for (int t = 0; t < TILE; t++) {
            step[t].load(warp.step[t0 + t], me);
            B[t] = shared.B[t0 + t][me.part];
        }
        if (RESETS) starts = shared.starts_within(t0);
    }
};

// From h before row t to h after it; leaves the decays. What a reset drops may be infinite, and times 0 that is no 0.
template <bool STARTS>
__device__ __forceinline__ void advance(const Operands& row, int t, const float4 (&a)[CHANNELS], float4 (&h)[CHANNELS],
                                        float4 (&decay)[CHANNELS]) {
    bool start = STARTS && row.starts >> t & 1;
#pragma unroll
    for (int n = 0; n < 4; n++) {
#pragma unroll
        for (int j = 0; j < CHANNELS; j++) {
            float s = row.step[t].of[j].x, enters = row.step[t].of[j].y;
            at(decay[j], n) = ex2(s * at(a[j], n));
            at(h[j], n) = fmaf(at(decay[j], n), start ? 0.f : at(h[j], n), enters * at(row.B[t], n));
        }
    }
}

// Bring what the next chunk starts with from memory to the L2 cache, whose latency is a third.
__device__ __forceinline__ void prefetch_chunk(const Sequence& q, const Lane& me, i64 b, i64 t0,
                                               const float* checkpoint) {
    int lane = threadIdx.x % 32;
    i64 channel = me.channel - me.column * CHANNELS;
    if (channel >= q.E || lane >= CHUNK) return;
    asm volatile("prefetch.global.L2 [%0];" ::"l"(q.x.row(b, t0 + lane) + channel));
    asm volatile("prefetch.global.L2 [%0];" ::"l"(q.dt.row(b, t0 + lane) + channel));
    if (lane * 32 < WARP_CHANNELS * N)
        asm volatile("prefetch.global.L2 [%0];" ::"l"(checkpoint + min(channel * N + lane * 32, q.E * N - 1)));
}

template <bool STARTS>
__device__ __forceinline__ void advance_tile(const Operands& row, const float4 (&a)[CHANNELS], float4 (&h)[CHANNELS]) {
    float4 decay[CHANNELS];
#pragma unroll
    for (int t = 0; t < TILE; t++) advance<STARTS>(row, t, a, h, decay);
}
__device__ __forceinline__ void recompute_starts(Shared& shared, Warp& warp, const Lane& me,
                                                 const float4 (&a)[CHANNELS], float4 (&h)[CHANNELS]) {
#pragma unroll 1
    for (int k = 0; k < TILES; k++) {
        Operands row;
        row.load(shared, warp, k * TILE, me);
#pragma unroll
        for (int j = 0; j < CHANNELS; j++) warp.start[k][j][threadIdx.x % 32] = h[j];
        if (k + 1 == TILES) break;
        if (RESETS && row.starts) advance_tile<true>(row, a, h);
        else advance_tile<false>(row, a, h);
    }
}

// This lane's shares of the sums that a row needs: over states for the row's quads, over channels for dB and dC.
struct Shares {
    float y[CHANNELS], dsx[CHANNELS], ds[CHANNELS], sums[LANE_SUMS];
};

// What one row gives back: h after it, h_prev before it, g the gradient of h from the rows after it.
template <bool STARTS>
__device__ __forceinline__ Shares retreat(const Operands& row, int t, float4 C, const float (&dy)[CHANNELS],
                                          const Lane& me, const float4 (&a)[CHANNELS], const float4 (&h)[CHANNELS],
                                          const float4 (&h_prev)[CHANNELS], const float4 (&decay)[CHANNELS],
                                          float4 (&g)[CHANNELS], float4 (&dA)[CHANNELS]) {
    const Step& step = row.step[t];
    bool start = STARTS && row.starts >> t & 1;
    Shares out;
    float v[8];
#pragma unroll
    for (int j = 0; j < CHANNELS; j++) {
#pragma unroll
        for (int n = 0; n < 4; n++) {
            float b = at(row.B[t], n), c = at(C, n), hn = at(h[j], n), gn = fmaf(dy[j], c, at(g[j], n));
            out.y[j] = n == 0 ? hn * c : fmaf(hn, c, out.y[j]);
            v[n] = j == 0 ? gn * step.of[j].y : fmaf(gn, step.of[j].y, v[n]);
            v[4 + n] = j == 0 ? dy[j] * hn : fmaf(dy[j], hn, v[4 + n]);
            out.dsx[j] = n == 0 ? gn * b : fmaf(gn, b, out.dsx[j]);
            gn = start ? 0.f : gn * at(decay[j], n);
            at(g[j], n) = gn;
            float through = start ? 0.f : gn * at(h_prev[j], n);
            out.ds[j] = n == 0 ? through * at(a[j], n) : fmaf(through, at(a[j], n), out.ds[j]);
            at(dA[j], n) = fmaf(through, step.of[j].x, at(dA[j], n));
        }
    }
    sum_channels(v, out.sums, me);
    return out;
}

// Tile k of the chunk, whose rows are in_group, in_group + 1, ... of their group.
template <bool STARTS>
__device__ __forceinline__ void walk_tile_back(Shared& shared, Warp& warp, int k, int in_group, const Lane& me,
                                               const float4 (&a)[CHANNELS], float4 (&g)[CHANNELS],
                                               float4 (&dA)[CHANNELS]) {
    float4 h[TILE + 1][CHANNELS], decay[TILE][CHANNELS], C[TILE];
    float dy[TILE][CHANNELS];
    Operands row;
    Shares out[TILE];
    row.load(shared, warp, k * TILE, me);
#pragma unroll
    for (int j = 0; j < CHANNELS; j++) h[0][j] = warp.start[k][j][threadIdx.x % 32];
#pragma unroll
    for (int t = 0; t < TILE; t++) {
        C[t] = shared.C[k * TILE + t][me.part];
#pragma unroll
        for (int j = 0; j < CHANNELS; j++) dy[t][j] = warp.dy[in_group + t][me.column * CHANNELS + j];
    }
#pragma unroll
    for (int t = 0; t < TILE; t++) {
#pragma unroll
        for (int j = 0; j < CHANNELS; j++) h[t + 1][j] = h[t][j];
        advance<STARTS>(row, t, a, h[t + 1], decay[t]);
    }
#pragma unroll
    for (int t = TILE - 1; t >= 0; t--)
        out[t] = retreat<STARTS>(row, t, C[t], dy[t], me, a, h[t + 1], h[t], decay[t], g, dA);
#pragma unroll
    for (int t = 0; t < TILE; t++) {
        if (GATED) put_shares(warp.y[in_group + t], out[t].y, me);
        put_shares(warp.dsx[in_group + t], out[t].dsx, me);
        put_shares(warp.ds[in_group + t], out[t].ds, me);
        put_sums(warp.sums[k * TILE + t], out[t].sums, me);
    }
}

struct Group {  // the quads of the rows of one group, from memory to their gradients
    Burst x, z, dy;
    io4 raw_x[PASSES], raw_z[PASSES], raw_dy[PASSES];

    __device__ __forceinline__ Group(const Sequence& q, const Lane& me, i64 b, i64 t0)
        : x(q.x, me, b, t0), z(q.z, me, b, t0), dy(q.dy, me, b, t0) {}
    __device__ __forceinline__ void load(const Lane& me, int rows) {
        x.load(raw_x, me, rows), dy.load(raw_dy, me, rows);
        if (GATED) z.load(raw_z, me, rows);
    }
    __device__ __forceinline__ void move(int rows) { x.move(rows), z.move(rows), dy.move(rows); }
};

struct Quad {  // four channels of one row while its group is walked
    io4 x, z, dy;
    float4 open;  // sigmoid(z)

    __device__ __forceinline__ float4 gated() const {
        float4 v = unpack(dy), gate = unpack(z);
        if (GATED)
            v = make_float4(v.x * gate.x * open.x, v.y * gate.y * open.y, v.z * gate.z * open.z, v.w * gate.w * open.w);
        return v;
    }
    __device__ __forceinline__ void stage(float* row) {
        float4 gate = unpack(z);
        if (GATED) open = make_float4(sigmoid(gate.x), sigmoid(gate.y), sigmoid(gate.z), sigmoid(gate.w));
        *(float4*)row = gated();
    }
};

struct Parameters {  // of this lane's four quad channels, with their gradients
    float4 D, dD, dbias;

    // Row `row` of the group whose first row in the chunk is t0; `place` and `place_z` are where its gradients go.
    __device__ __forceinline__ void finish(const Sequence& q, const Warp& warp, const Quad& quad, const Lane& me,
                                           int t0, int row, bool exists, i64 place, i64 place_z) {
        float4 u = unpack(quad.x), gate = unpack(quad.z), dout = unpack(quad.dy), dgated = quad.gated(), dx, ddt, dz;
        float4 dsx = gather(warp.dsx[row], me), through = gather(warp.ds[row], me), y = float4();
        if (GATED) y = gather(warp.y[row], me);
        const float4* steps = (const float4*)&warp.step[t0 + row][me.quad_column];
        float s[4] = {steps[0].x, steps[0].z, steps[1].x, steps[1].z};
#pragma unroll
        for (int c = 0; c < 4; c++) {
            float ds = fmaf(at(dsx, c), at(u, c), LN2 * at(through, c));
            ds *= SOFTPLUS ? softplus_slope(s[c]) : exists ? 1.f : 0.f;  // the slope is 0 where s is
            at(dx, c) = fmaf(at(dsx, c), s[c], at(D, c) * at(dgated, c));
            at(ddt, c) = ds;
            at(dD, c) = fmaf(at(dgated, c), at(u, c), at(dD, c));
            at(dbias, c) += ds;
            if (GATED) {
                float open = at(quad.open, c), before = fmaf(at(D, c), at(u, c), at(y, c));
                at(dz, c) = at(dout, c) * before * open * fmaf(at(gate, c), 1.f - open, 1.f);
                at(y, c) = before * at(gate, c) * open;
            }
        }
        int valid = exists ? me.quad_valid : 0;
        store4<ALIGNED>(q.dx + place, valid, dx);
        store4<ALIGNED>(q.ddt + place, valid, ddt);
        if (GATED) store4<ALIGNED>(q.dz.data + place_z, valid, dz);
        if (GATED && q.y != nullptr) store4<ALIGNED>(q.y + place, valid, y);
    }
};

// From memory: B and C of a chunk for the whole block, s and s x of the warp's channels; rows that do not exist have s
// = 0. All reads (of STAGED rows) are under way before the first is waited for, the states before the chunk too.
__device__ __forceinline__ void stage_chunk(Shared& shared, Warp& warp, const Sequence& q, const Lane& me, float4 bias,
                                            i64 b, i64 t0, int rows, const float* checkpoint, float4 (&h)[CHANNELS]) {
    constexpr int THREADS = WARPS * 32, STATE_QUADS = CHUNK * PARTS, ROUNDS = (STATE_QUADS + THREADS - 1) / THREADS;
    io4 raw_x[StageBurst::PASSES], raw_dt[StageBurst::PASSES], raw_B[ROUNDS], raw_C[ROUNDS];
    load_slab(h, checkpoint, me, q.E, 0.f);
    StageBurst from_dt(q.dt, me, b, t0);
    from_dt.load(raw_dt, me, rows);
    StageBurst from_x(q.x, me, b, t0);
    from_x.load(raw_x, me, rows);
    const io_t *B = q.B.row(b, t0), *C = q.C.row(b, t0);
#pragma unroll
    for (int i = 0; i < ROUNDS; i++) {
        int index = threadIdx.x + i * THREADS, row = index / PARTS, part = index % PARTS,
            states = row < rows ? N - part * 4 : 0;
        raw_B[i] = load4 < ALIGNED_BC && N == STATES > (B + (unsigned)(row * (int)q.B.row_stride + part * 4), states);
        raw_C[i] = load4 < ALIGNED_BC && N == STATES > (C + (unsigned)(row * (int)q.C.row_stride + part * 4), states);
    }
    if (RESETS && threadIdx.x < 32) {
        int lane = threadIdx.x;
        unsigned starts = __ballot_sync(ALL, lane < rows && q.resets[b * q.L + t0 + lane]);
        if (lane == 0) shared.starts = starts;
    }
#pragma unroll
    for (int first = 0; first < CHUNK; first += STAGED) {
        if (first > 0) {
            from_dt.move(STAGED), from_dt.load(raw_dt, me, rows - first);
            from_x.move(STAGED), from_x.load(raw_x, me, rows - first);
        }
#pragma unroll
        for (int i = 0; i < StageBurst::PASSES; i++) {
            int row = first + me.quad_row + i * ROWS_PER_PASS;
            if (CHUNK % ROWS_PER_PASS != 0 && row >= CHUNK) break;
            float4 x = unpack(raw_x[i]), dt = unpack(raw_dt[i]), s;
            float exists = row < rows ? 1.f : 0.f;
#pragma unroll
            for (int c = 0; c < 4; c++) at(s, c) = exists * step_of(at(dt, c), at(bias, c));
            put_steps(&warp.step[row][me.quad_column], s, make_float4(s.x * x.x, s.y * x.y, s.z * x.z, s.w * x.w));
        }
    }
#pragma unroll
    for (int i = 0; i < ROUNDS; i++) {
        int index = threadIdx.x + i * THREADS;
        if (STATE_QUADS % THREADS != 0 && index >= STATE_QUADS) break;
        shared.B[index / PARTS][index % PARTS] = unpack(raw_B[i]);
        shared.C[index / PARTS][index % PARTS] = unpack(raw_C[i]);
    }
}

// x, dt, z, dy and their gradients (B, L, E); dx and ddt are contiguous, and so is y, what the forward returned, which
// is written again unless it is null or nothing is gated. B, C (B, L, N). first (B, segments, E, N) or null is the
// gradient of the state after each segment. dA (B, segments, E, N), dD and ddt_bias (B, segments, E), dBC (blocks, B,
// L, 2, STATES) are partial sums; dfirst (B, E, N) is the gradient of the state before row 0.
extern "C" __global__ void __launch_bounds__(WARPS * 32, MIN_BLOCKS)
    scan_backward(io_t* x, i64 x_batch, i64 x_row, io_t* dt, i64 dt_batch, i64 dt_row, io_t* z, i64 z_batch, i64 z_row,
                  io_t* dy, i64 dy_batch, i64 dy_row, io_t* B, i64 B_batch, i64 B_row, io_t* C, i64 C_batch, i64 C_row,
                  const float* A, const float* D, const float* dt_bias, const unsigned char* resets, i64 L, i64 E,
                  i64 segments, i64 segment_rows, const float* checkpoints, const float* first, io_t* dx, io_t* ddt,
                  io_t* dz, i64 dz_batch, i64 dz_row, io_t* y, float* dA_out, float* dD_out, float* dbias_out,
                  float* dBC, float* dfirst) {
    extern __shared__ float4 memory[];
    Shared& shared = *(Shared*)memory;
    Warp& warp = shared.warp[threadIdx.x / 32];
    Sequence q{{x, x_batch, x_row},
               {dt, dt_batch, dt_row},
               {z, z_batch, z_row},
               {dy, dy_batch, dy_row},
               {B, B_batch, B_row},
               {C, C_batch, C_row},
               dx,
               ddt,
               y,
               {dz, dz_batch, dz_row},
               A,
               D,
               dt_bias,
               resets,
               L,
               E};
    i64 b = blockIdx.x / segments, slab = blockIdx.x * E * N;  // blockIdx.x is (sequence, segment)
    i64 begin = blockIdx.x % segments * segment_rows, end = min(L, begin + segment_rows),
        chunks = (L + CHUNK - 1) / CHUNK;
    Lane me(((i64)blockIdx.y * WARPS + threadIdx.x / 32) * WARP_CHANNELS, E);
    i64 quad_channel = me.channel - me.column * CHANNELS + me.quad_column;

    float4 a[CHANNELS], h[CHANNELS], g[CHANNELS], dA[CHANNELS];
    load_decay(a, A, me, E);
    load_slab(g, first == nullptr ? nullptr : first + slab, me, E, 0.f);
#pragma unroll
    for (int j = 0; j < CHANNELS; j++) dA[j] = float4();
    float4 bias = load_floats(dt_bias == nullptr ? nullptr : dt_bias + quad_channel, me.quad_valid, 0.f);
    Parameters of{load_floats(D == nullptr ? nullptr : D + quad_channel, me.quad_valid, 0.f), float4(), float4()};
    i64 c = (end - 1) / CHUNK, t0 = c * CHUNK;
    Group group(q, me, b, t0 + CHUNK - GROUP);
    int left = (int)(end - t0);  // rows from t0 to the end of the segment
    group.load(me, left - (CHUNK - GROUP));
    for (; t0 >= begin; c--, t0 -= CHUNK, left += CHUNK) {
        int rows = min(CHUNK, left);
        stage_chunk(shared, warp, q, me, bias, b, t0, rows, checkpoints + (b * chunks + c) * E * N, h);
        if (t0 > begin) prefetch_chunk(q, me, b, t0 - CHUNK, checkpoints + (b * chunks + c - 1) * E * N);
        __syncthreads();
        recompute_starts(shared, warp, me, a, h);
#pragma unroll 1
        for (int r = CHUNK - GROUP; r >= 0; r -= GROUP) {
            Quad quad[PASSES];
#pragma unroll
            for (int i = 0; i < PASSES; i++) {
                quad[i] = Quad{group.raw_x[i], group.raw_z[i], group.raw_dy[i], float4()};
                int row = me.quad_row + i * ROWS_PER_PASS;
                if (GROUP % ROWS_PER_PASS == 0 || row < GROUP) quad[i].stage(&warp.dy[row][me.quad_column]);
            }
            group.move(-GROUP);
            if (r > 0 || t0 > begin) group.load(me, left - (r - GROUP));  // on its way while this group is walked
            __syncwarp();
#pragma unroll 1
            for (int k = GROUP / TILE - 1; k >= 0; k--) {
                if (RESETS && shared.starts_within(r + k * TILE))
                    walk_tile_back<true>(shared, warp, r / TILE + k, k * TILE, me, a, g, dA);
                else walk_tile_back<false>(shared, warp, r / TILE + k, k * TILE, me, a, g, dA);
            }
            __syncwarp();
#pragma unroll
            for (int i = 0; i < PASSES; i++) {
                int row = me.quad_row + i * ROWS_PER_PASS;
                if (GROUP % ROWS_PER_PASS == 0 || row < GROUP) {
                    i64 t = t0 + r + row;
                    of.finish(q, warp, quad[i], me, r, row, r + row < rows, (b * L + t) * E + quad_channel,
                              b * dz_batch + t * dz_row + quad_channel);
                }
            }
        }
        __syncthreads();
        for (int i = threadIdx.x; i < rows * SUMS; i += WARPS * 32) {
            float sum = 0.f;
#pragma unroll
            for (int w = 0; w < WARPS; w++) sum += shared.warp[w].sums[i / SUMS][i % SUMS];
            dBC[((blockIdx.y * (gridDim.x / segments) + b) * L + t0) * SUMS + i] = sum;
        }
        __syncthreads();
    }
    store_slab(dA_out + slab, dA, me, E);
    if (begin == 0 && dfirst != nullptr) store_slab(dfirst + b * E * N, g, me, E);
#pragma unroll
    for (int lanes = LANES_PER_ROW; lanes < 32; lanes *= 2)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            at(of.dD, i) += __shfl_xor_sync(ALL, at(of.dD, i), lanes);
            at(of.dbias, i) += __shfl_xor_sync(ALL, at(of.dbias, i), lanes);
        }
    if (me.quad_row == 0) {
        store_floats(dD_out + blockIdx.x * E + quad_channel, me.quad_valid, of.dD);
        store_floats(dbias_out + blockIdx.x * E + quad_channel, me.quad_valid, of.dbias);
    }
}

// dB and dC (rows, N) from the partial sums (blocks, rows, 2, STATES), block after block. One thread an element.
extern "C" __global__ void scan_sum_blocks(const float* partial, io_t* dB, io_t* dC, i64 blocks, i64 rows) {
    i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= rows * SUMS) return;
    float sum = 0.f;
    for (i64 k = 0; k < blocks; k++) sum += partial[k * rows * SUMS + i];
    i64 row = i / SUMS, state = i % STATES;
    if (state < N) (i % SUMS < STATES ? dB : dC)[row * N + state] = from_float(sum);
}
