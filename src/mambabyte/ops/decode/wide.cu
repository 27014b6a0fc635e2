// A layer for many columns, as a few kernels: the weights are read once for all of them, and the states of the rows are
// what must be moved. Every column's sums are those of the persistent kernel, to the last bit: see parts.cuh.
//
// Columns are rows of all arrays. Those of a sequence are neighbours, in the order of time: first[i] is the first column
// of sequence i, before[i] the slot of its state, after[column] the slot that takes the state after that column.

// A warp a column: columns (count, D_PITCH) from the embeddings of the bytes or, where id is null, from the stream.
extern "C" __global__ void normalise_columns(const float* table, const int* id, const float* norm, io_t* columns,
                                             i64 count) {
    i64 column = (i64)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (column < count)
        normalise(table + (id == nullptr ? column : id[column]) * D_PITCH, norm, columns + column * D_PITCH,
                  threadIdx.x % 32);
}

extern __shared__ __align__(128) unsigned char memory[];

constexpr int WIDE_COLUMNS = 64, WIDE_TILES = 8;   // of a block: 64 columns by 64 outputs
constexpr int WIDE_WARPS = 8, WIDE_STAGES = 3;     // 2 by 4 warps, 32 columns by 16 outputs each; one more copies
constexpr int WIDE_PITCH = SLICE + 8;

struct WideStage {
    unsigned char weights[WIDE_TILES][BLOCK_BYTES];
    io_t columns[WIDE_COLUMNS][WIDE_PITCH];
};
struct __align__(128) WideShared {
    WideStage stages[WIDE_STAGES];
    u64 full[WIDE_STAGES], empty[WIDE_STAGES];
};

// The copying warp: slice after slice of the block's columns and weights.
__device__ __forceinline__ void fetch_wide(WideShared& s, const io_t* columns, int pitch, const unsigned char* weights,
                                           int tiles, int slices) {
    int lane = threadIdx.x % 32;
    for (int slice = 0; slice < slices; slice++) {
        int stage = slice % WIDE_STAGES;
        WideStage& to = s.stages[stage];
        barrier_wait(&s.empty[stage], slice / WIDE_STAGES % 2 ^ 1);
        if (lane == 0) barrier_expect(&s.full[stage], tiles * BLOCK_BYTES + WIDE_COLUMNS * SLICE * 2);
        __syncwarp();
        if (lane < tiles)
            bulk_copy(to.weights[lane], weights + ((i64)lane * slices + slice) * BLOCK_BYTES, BLOCK_BYTES,
                      &s.full[stage]);
        for (int column = lane; column < WIDE_COLUMNS; column += 32)
            bulk_copy(to.columns[column], columns + (i64)column * pitch + slice * SLICE, SLICE * 2, &s.full[stage]);
    }
}

struct Products {
    float sum[2][2][4];  // of 16 columns and 8 outputs each: [columns][outputs]
};

// All slices of a warp's 32 columns by 16 outputs.
__device__ __forceinline__ Products multiply_wide(WideShared& s, int slices) {
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, down = warp / 4, across = warp % 4;
    Products p;
    for (int slice = 0; slice < slices; slice++) {
        int stage = slice % WIDE_STAGES;
        barrier_wait(&s.full[stage], slice / WIDE_STAGES % 2);
        WideStage& from = s.stages[stage];
#pragma unroll
        for (int m = 0; m < 2; m++) {
            const uint4* place = (const uint4*)&from.columns[down * 32 + m * 16 + lane / 4][lane % 4 * 32];
            const uint4* below = (const uint4*)((const io_t*)place + 8 * WIDE_PITCH);
            uint4 low[4], high[4];
#pragma unroll
            for (int i = 0; i < 4; i++) low[i] = place[i], high[i] = below[i];
#pragma unroll
            for (int n = 0; n < 2; n++) {
                float d[4];
                multiply(d, low, high, (const uint4*)from.weights[across * 2 + n] + lane);
#pragma unroll
                for (int i = 0; i < 4; i++) p.sum[m][n][i] = slice == 0 ? d[i] : p.sum[m][n][i] + d[i];
            }
        }
        __syncwarp();
        if (lane == 0) barrier_arrive(&s.empty[stage]);
    }
    return p;
}

// columns (count, pitch) times weights [tile][slice]: to `out` (count, out_pitch), rounded to IO, as IO if it is given;
// else to `floats`, added to what `id` picks from `table` (or lies in `floats` where id is null) if ADD.
template <bool ADD>
__device__ __forceinline__ void product_body(const io_t* columns, i64 pitch, const unsigned char* weights, i64 tiles,
                                             i64 slices, i64 count, io_t* out, float* floats, i64 out_pitch,
                                             const float* table, const int* id, i64 outputs) {
    WideShared& s = *(WideShared*)memory;
    i64 first_tile = (i64)blockIdx.x * WIDE_TILES, first_column = (i64)blockIdx.y * WIDE_COLUMNS;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, here = (int)min((i64)WIDE_TILES, tiles - first_tile);
    if (threadIdx.x == 0) {
        for (int i = 0; i < WIDE_STAGES; i++) barrier_init(&s.full[i], 1), barrier_init(&s.empty[i], WIDE_WARPS);
        barrier_fence();
    }
    __syncthreads();
    if (warp == WIDE_WARPS) {
        fetch_wide(s, columns + first_column * pitch, (int)pitch, weights + first_tile * slices * BLOCK_BYTES, here,
                   (int)slices);
        return;
    }
    Products p = multiply_wide(s, (int)slices);
#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
        for (int n = 0; n < 2; n++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                i64 column = first_column + warp / 4 * 32 + m * 16 + half * 8 + lane / 4;
                int tile = warp % 4 * 2 + n;
                i64 output = (first_tile + tile) * TILE + lane % 4 * 2;
                if (column >= count || tile >= here) continue;
                float a = p.sum[m][n][half * 2], b = p.sum[m][n][half * 2 + 1];
                if (out != nullptr) {
                    *(unsigned*)(out + column * out_pitch + output) = pack2(a, b);
                    continue;
                }
                float* to = floats + column * out_pitch + output;
                const float* old = ADD && id != nullptr ? table + (i64)id[column] * out_pitch + output : to;
                if (output < outputs) to[0] = (ADD ? old[0] : 0.f) + rounded(a);
                if (output + 1 < outputs) to[1] = (ADD ? old[1] : 0.f) + rounded(b);
            }
}
extern "C" __global__ void __launch_bounds__(32 * WIDE_WARPS + 32)
    in_product(const io_t* columns, const unsigned char* weights, io_t* xz, i64 count) {
    product_body<false>(columns, D_PITCH, weights, 2 * E_TILES, D_SLICES, count, xz, nullptr, 2 * E_TILES * TILE,
                        nullptr, nullptr, 2 * E_TILES * TILE);
}
extern "C" __global__ void __launch_bounds__(32 * WIDE_WARPS + 32)
    out_product(const io_t* y, const unsigned char* weights, float* stream, const float* table, const int* id,
                i64 count) {
    product_body<true>(y, E_PITCH, weights, D_TILES, E_SLICES, count, nullptr, stream, D_PITCH, table, id, D);
}
extern "C" __global__ void __launch_bounds__(32 * WIDE_WARPS + 32)
    head_product(const io_t* columns, const unsigned char* weights, float* logits, i64 outputs, i64 count) {
    product_body<false>(columns, D_PITCH, weights, V_TILES, D_SLICES, count, nullptr, logits, outputs, nullptr,
                        nullptr, outputs);
}

// The convolution of one layer: a thread walks a sequence's columns for a channel.
// xz (count, tile of x, tile of z, ...) -> u (count, E_PITCH).
extern "C" __global__ void convolve_columns(const io_t* xz, const Channels* channels, float* conv, i64 slot_size,
                                            const int* before, const int* after, const int* first, const int* rows,
                                            io_t* u) {
    int e = blockIdx.x * blockDim.x + threadIdx.x, row = blockIdx.y, c = e % TILE;
    if (e >= E || row >= *rows) return;
    const Channels& own = channels[e / TILE];
    float past[CONV_STATE];
    const float* from = conv + before[row] * slot_size + e * CONV_STATE;
#pragma unroll
    for (int w = 0; w < CONV_STATE; w++) past[w] = from[w];
    for (int column = first[row]; column < first[row + 1]; column++) {
        float x = to_float(xz[((i64)column * E_TILES + e / TILE) * 2 * TILE + c]);
        u[(i64)column * E_PITCH + e] = from_float(convolve(past, x, own.taps[c], own.conv_bias[c]));
        float* to = conv + after[column] * slot_size + e * CONV_STATE;
#pragma unroll
        for (int w = 0; w < CONV_STATE; w++) to[w] = past[w];
    }
}

constexpr int SELECT_WARPS = 16;

// A tile of outputs of the x-projection for 16 columns, a warp a slice: u (count, E_PITCH) -> selected (count,
// SELECT_PITCH). The array of u has whole groups of 16 columns.
extern "C" __global__ void __launch_bounds__(32 * SELECT_WARPS)
    select_columns(const io_t* u, const unsigned char* weights, float* selected, i64 count) {
    auto sums = (float (*)[16][TILE])memory;  // [slice][column][output]
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    i64 tile = blockIdx.x, first = (i64)blockIdx.y * 16;
    for (int slice = warp; slice < E_SLICES; slice += SELECT_WARPS) {
        const uint4* place = (const uint4*)(u + (first + lane / 4) * E_PITCH + slice * SLICE + lane % 4 * 32);
        const uint4* below = (const uint4*)((const io_t*)place + 8 * E_PITCH);
        uint4 low[4], high[4];
#pragma unroll
        for (int i = 0; i < 4; i++) low[i] = place[i], high[i] = below[i];
        float d[4];
        multiply(d, low, high, (const uint4*)(weights + (tile * E_SLICES + slice) * BLOCK_BYTES) + lane);
        int column = lane / 4, output = lane % 4 * 2;
        sums[slice][column][output] = d[0], sums[slice][column][output + 1] = d[1];
        sums[slice][column + 8][output] = d[2], sums[slice][column + 8][output + 1] = d[3];
    }
    __syncthreads();
    int column = threadIdx.x / TILE, output = threadIdx.x % TILE;
    if (column >= 16 || first + column >= count) return;
    float sum = sums[0][column][output];
    for (int slice = 1; slice < E_SLICES; slice++) sum += sums[slice][column][output];
    selected[(first + column) * SELECT_PITCH + tile * TILE + output] = rounded(sum);
}

constexpr int SCAN_ROWS = 8;  // of a block, one after the other: the channels' weights stay in registers

// Step sizes, scan and gate of one layer: PARTS neighbouring threads walk a sequence's columns for a channel.
extern "C" __global__ void __launch_bounds__(256)
    scan_columns(const io_t* xz, const io_t* u, const float* selected, const Channels* channels, float* ssm,
                 i64 slot_size, const int* before, const int* after, const int* first, const int* rows, io_t* y) {
    int index = blockIdx.x * blockDim.x + threadIdx.x, e = index / PARTS, part = index % PARTS, c = e % TILE;
    unsigned group = 0xfu << (threadIdx.x % 32 & ~(PARTS - 1));
    if (e >= E) return;
    const Channels& own = channels[e / TILE];
    int row = blockIdx.y * SCAN_ROWS, last = min(row + SCAN_ROWS, *rows);
    if (row >= last) return;
    float bias = own.dt_bias[c], skip = own.skip[c], A[OWN], h[OWN], next[OWN];
    auto place = [&](int slot) { return ssm + slot * slot_size + (i64)e * N_PITCH + part * OWN; };
    load_states(A, own.A[c] + part * OWN);
    load_states(next, place(before[row]));
    for (; row < last; row++) {
#pragma unroll
        for (int i = 0; i < OWN; i++) h[i] = next[i];
        if (row + 1 < last) load_states(next, place(before[row + 1]));  // no sequence's end is another's beginning
        for (int column = first[row]; column < first[row + 1]; column++) {
            const float* chosen = selected + (i64)column * SELECT_PITCH;
            float dt = step_size(chosen, own.dt[c], bias, part, group);
            float z = to_float(xz[(((i64)column * E_TILES + e / TILE) * 2 + 1) * TILE + c]);
            float out = scan(h, dt, to_float(u[(i64)column * E_PITCH + e]), z, chosen + R, chosen + R + N, A, skip,
                             part, group);
            if (part == 0) y[(i64)column * E_PITCH + e] = from_float(out);
            store_states(h, place(after[column]));
        }
    }
}
