// A layer for many columns, as a few kernels: the weights are read once for all of them, and the states of the rows are
// what must be moved. Every column's sums are those of the persistent kernel, to the last bit: see parts.cuh.
//
// Columns of a sequence are neighbours, in the order of time: begin[column] is the slot of the state that the sequence
// starts from, or -1 where it goes on from the column before; after[column] the slot that takes the state after it.
//
// From the host, beside what parts.cuh needs: WGMMA, whether the products are those of warpgroup.cuh; IN_TILES,
// OUT_TILES and HEAD_TILES, the tiles of outputs of a block.
//
// What a product reads lies as its warps read it, the slice of 64 columns together: see `place_of`.

extern __shared__ __align__(128) unsigned char memory[];

constexpr int GROUP = 64;                  // columns of a block
constexpr int GROUP_SLICE = GROUP * SLICE;  // elements

// Where input k of a column lies: [group][slice][8 columns], blocks as those of weights.
__device__ __forceinline__ int place_of_column(unsigned column, int slices) {
    return column / GROUP * slices * GROUP_SLICE + column % GROUP / TILE * BLOCK + column % TILE * 8;
}
__device__ __forceinline__ int place_of_input(unsigned k) {
    return k / SLICE * GROUP_SLICE + k % SLICE / 8 * (TILE * 8) + k % 8;
}
__device__ __forceinline__ int place_of(int column, int k, int slices) {
    return place_of_column(column, slices) + place_of_input(k);
}

// A warp a column: the embeddings of the bytes or, where id is null, the stream, normalised.
extern "C" __global__ void __launch_bounds__(64, 8)
    normalise_columns(const float* table, const int* id, const float* __restrict__ norm, io_t* columns, i64 count) {
    int column = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    int lane = threadIdx.x % 32;
    if (column >= count) return;
    const float4* from = (const float4*)(table + (id == nullptr ? column : id[column]) * D_PITCH) + lane;
    float4 x[D_SLICES];
    float sums[D_SLICES];
#pragma unroll
    for (int i = 0; i < D_SLICES; i++) x[i] = from[i * 32];
    if (LAYER) {
#pragma unroll
        for (int i = 0; i < D_SLICES; i++) sums[i] = slice_sum(x[i]);
        float mean = add_slices(sums) / D;
#pragma unroll
        for (int i = 0; i < D_SLICES; i++) x[i] = centred(x[i], mean, i * SLICE + lane * 4);
    }
#pragma unroll
    for (int i = 0; i < D_SLICES; i++) sums[i] = slice_square(x[i]);
    float rate = rate_of(add_slices(sums));
#pragma unroll
    for (int i = 0; i < D_SLICES; i++) {
        int place = i * SLICE + lane * 4;
        *(io4*)(columns + place_of(column, place, D_SLICES)) = scaled(x[i], rate, norm, place);
    }
}

constexpr int WIDE_WARPS = 4;                // that multiply; one more copies
constexpr int WIDE_BLOCKS = WGMMA ? 1 : 2;   // of a multiprocessor

// A block multiplies 64 columns with TILES tiles of outputs, a warp 32 columns with half of the tiles or, where a
// warpgroup multiplies, 16 columns with all of them.
template <int TILES>
struct Wide {
    static constexpr int STAGES = WGMMA ? (TILES > 8 ? 4 : TILES > 4 ? 6 : 8) : TILES > 4 ? 3 : TILES > 2 ? 4 : 8;
    static constexpr int DOWN = WGMMA ? 1 : 2, ACROSS = WGMMA ? TILES : TILES / 2;
    struct Stage {
        unsigned char weights[TILES][BLOCK_BYTES];
        io_t columns[GROUP_SLICE];
    };
    struct __align__(128) Shared {
        Stage stages[STAGES];
        u64 full[STAGES], empty[STAGES];
    };
    struct Products {
        float sum[DOWN][ACROSS][4];
    };

    // The copying warp: slice after slice of the block's weights and columns.
    static __device__ __forceinline__ void fetch(Shared& s, const io_t* columns, const unsigned char* weights,
                                                 int tiles, int slices) {
        int lane = threadIdx.x % 32;
        for (int slice = 0; slice < slices; slice++) {
            int stage = slice % STAGES;
            barrier_wait(&s.empty[stage], slice / STAGES % 2 ^ 1);
            if (lane == 0) {
                barrier_expect(&s.full[stage], tiles * BLOCK_BYTES + GROUP_SLICE * 2);
                bulk_copy(s.stages[stage].columns, columns + (i64)slice * GROUP_SLICE, GROUP_SLICE * 2,
                          &s.full[stage]);
            }
            __syncwarp();
            if (lane < tiles)
                bulk_copy(s.stages[stage].weights[lane], weights + ((i64)lane * slices + slice) * BLOCK_BYTES,
                          BLOCK_BYTES, &s.full[stage]);
        }
    }

    // A warp's first 16 columns and first tile.
    static __device__ __forceinline__ int first_down(int warp) { return WGMMA ? warp : warp / 2 * DOWN; }
    static __device__ __forceinline__ int first_across(int warp) { return WGMMA ? 0 : warp % 2 * ACROSS; }

#if WGMMA
    // All slices of the block's columns and outputs, the chains of `multiply` side by side.
    static __device__ __forceinline__ void multiply_slices(Products& p, Shared& s, int slices) {
#pragma unroll 1
        for (int slice = 0; slice < slices; slice++) {
            int stage = slice % STAGES;
            barrier_wait(&s.full[stage], slice / STAGES % 2);
            u64 columns = matrix_of(s.stages[stage].columns), weights = matrix_of(s.stages[stage].weights);
            float chains[2][TILES * 4];
            fence_products();
#pragma unroll
            for (int i = 0; i < SLICE / 16; i++)
                begin_product(chains[i % 2], columns + i * NEXT_INPUTS, weights + i * NEXT_INPUTS, i >= 2);
            finish_products();
            if (threadIdx.x % 32 == 0) barrier_arrive(&s.empty[stage]);
#pragma unroll
            for (int i = 0; i < TILES * 4; i++) {
                float sum = chains[0][i] + chains[1][i], &to = p.sum[0][i / 4][i % 4];
                to = slice == 0 ? sum : to + sum;
            }
        }
    }
#else
    // All slices of a warp's columns and outputs, the chains of `multiply` side by side.
    static __device__ __forceinline__ void multiply_slices(Products& p, Shared& s, int slices) {
        int warp = threadIdx.x / 32, lane = threadIdx.x % 32, down = first_down(warp), across = first_across(warp);
#pragma unroll 1
        for (int slice = 0; slice < slices; slice++) {
            int stage = slice % STAGES;
            barrier_wait(&s.full[stage], slice / STAGES % 2);
            const Stage& from = s.stages[stage];
            float chains[2][DOWN][ACROSS][4] = {};
#pragma unroll
            for (int i = 0; i < 4; i++) {
                uint4 weights[ACROSS];
#pragma unroll
                for (int n = 0; n < ACROSS; n++)
                    weights[n] = load_matrices((const uint4*)from.weights[across + n] + i * 32 + lane);
#pragma unroll
                for (int m = 0; m < DOWN; m++) {
                    const io_t* block = from.columns + (down + m) * 2 * BLOCK + (i * 32 + lane) * 8;
                    uint4 low = load_matrices(block), high = load_matrices(block + BLOCK);
#pragma unroll
                    for (int n = 0; n < ACROSS; n++) {
                        mma(chains[0][m][n], {low.x, high.x, low.y, high.y}, weights[n].x, weights[n].y);
                        mma(chains[1][m][n], {low.z, high.z, low.w, high.w}, weights[n].z, weights[n].w);
                    }
                }
            }
#pragma unroll
            for (int m = 0; m < DOWN; m++)
#pragma unroll
                for (int n = 0; n < ACROSS; n++)
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        float sum = chains[0][m][n][i] + chains[1][m][n][i];
                        p.sum[m][n][i] = slice == 0 ? sum : p.sum[m][n][i] + sum;
                    }
            __syncwarp();
            if (lane == 0) barrier_arrive(&s.empty[stage]);
        }
    }
#endif

    // What a thread has of the block's products: `each` takes m, n, half, a column and an output.
    template <class Each>
    static __device__ __forceinline__ void for_all(int here, i64 count, Each each) {
        int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
        for (int m = 0; m < DOWN; m++)
#pragma unroll
            for (int n = 0; n < ACROSS; n++)
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    int down = (first_down(warp) + m) * 16 + half * 8 + lane / 4, tile = first_across(warp) + n;
                    int column = blockIdx.y * GROUP + down;
                    if (column < count && tile < here)
                        each(m, n, half, column, ((int)blockIdx.x * TILES + tile) * TILE + lane % 4 * 2);
                }
    }

    // 64 columns times the block's outputs of weights [tile][slice]; `load` takes a column and an output, and `store`
    // also the products with it and the next one, and what was loaded: all of it at once, before the work begins.
    template <class Load, class Store>
    static __device__ __forceinline__ void run(const io_t* columns, const unsigned char* weights, int tiles, int slices,
                                               i64 count, Load load, Store store) {
        Shared& s = *(Shared*)memory;
        i64 first_tile = (i64)blockIdx.x * TILES;
        int warp = threadIdx.x / 32, here = min(TILES, tiles - (int)first_tile);
        if (threadIdx.x == 0) {
            for (int i = 0; i < STAGES; i++) barrier_init(&s.full[i], 1), barrier_init(&s.empty[i], WIDE_WARPS);
            barrier_fence();
        }
        __syncthreads();
        if (warp == WIDE_WARPS) {
            columns += (i64)blockIdx.y * slices * GROUP_SLICE, weights += first_tile * slices * BLOCK_BYTES;
            fetch(s, columns, weights, here, slices);
            return;
        }
        decltype(load(0, 0)) old[DOWN][ACROSS][2];
        for_all(here, count,
                [&](int m, int n, int half, int column, int output) { old[m][n][half] = load(column, output); });
        Products p;
        multiply_slices(p, s, slices);
        for_all(here, count, [&](int m, int n, int half, int column, int output) {
            const float* sum = &p.sum[m][n][half * 2];
            store(column, output, sum[0], sum[1], old[m][n][half]);
        });
    }
};

struct Nothing {};
__device__ __forceinline__ Nothing nothing(int, int) { return Nothing(); }

// xz (count, tile of x, tile of z, ...).
extern "C" __global__ void __launch_bounds__(32 * WIDE_WARPS + 32, WIDE_BLOCKS)
    in_product(const io_t* columns, const unsigned char* weights, io_t* xz, i64 count) {
    auto store = [&](int column, int output, float a, float b, Nothing) {
        *(unsigned*)(xz + column * (2 * E_TILES * TILE) + output) = pack2(a, b);
    };
    Wide<IN_TILES>::run(columns, weights, 2 * E_TILES, D_SLICES, count, nothing, store);
}
// Added to the stream (count, D_PITCH), or to the bytes' embeddings where id is given.
extern "C" __global__ void __launch_bounds__(32 * WIDE_WARPS + 32, WIDE_BLOCKS)
    out_product(const io_t* y, const unsigned char* weights, float* stream, const float* table, const int* id,
                i64 count) {
    auto load = [&](int column, int output) {
        return *(const float2*)((id == nullptr ? stream + column * D_PITCH : table + (i64)id[column] * D_PITCH) + output);
    };
    auto store = [&](int column, int output, float a, float b, float2 old) {
        *(float2*)(stream + column * D_PITCH + output) = make_float2(old.x + rounded(a), old.y + rounded(b));
    };
    Wide<OUT_TILES>::run(y, weights, D_TILES, E_SLICES, count, load, store);
}
// logits (count, outputs).
extern "C" __global__ void __launch_bounds__(32 * WIDE_WARPS + 32, WIDE_BLOCKS)
    head_product(const io_t* columns, const unsigned char* weights, float* logits, i64 outputs, i64 count) {
    auto store = [&](int column, int output, float a, float b, Nothing) {
        if (output < outputs) logits[column * outputs + output] = rounded(a);
        if (output + 1 < outputs) logits[column * outputs + output + 1] = rounded(b);
    };
    Wide<HEAD_TILES>::run(columns, weights, V_TILES, D_SLICES, count, nothing, store);
}

constexpr int SELECT_WARPS = 16;

// A tile of outputs of the x-projection for 16 columns, a warp a slice: -> selected (count, SELECT_PITCH).
extern "C" __global__ void __launch_bounds__(32 * SELECT_WARPS, 1)
    select_columns(const io_t* u, const unsigned char* weights, float* selected, i64 count) {
    auto sums = (float (*)[16][TILE])memory;  // [slice][column][output]
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int tile = blockIdx.x, first = blockIdx.y * 16;
    for (int slice = warp; slice < E_SLICES; slice += SELECT_WARPS) {
        const io_t* columns = u + place_of(first, slice * SLICE, E_SLICES);
        uint4 low[4], high[4], own[4];
        read_block(low, columns, lane), read_block(high, columns + BLOCK, lane);
        read_block(own, weights + (tile * E_SLICES + slice) * BLOCK_BYTES, lane);
        float d[4];
        multiply(d, low, high, own);
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
