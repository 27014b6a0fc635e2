// A layer for many columns, as a few kernels: the weights are read once for all of them, and the states of the rows are
// what must be moved. Every column's sums are those of the persistent kernel, to the last bit: see parts.cuh.
//
// Columns of a sequence are neighbours, in the order of time: begin[column] is the slot of the state that the sequence
// starts from, or -1 where it goes on from the column before; after[column] the slot that takes the state after it.
//
// From the host, beside what parts.cuh needs: IN_TILES, OUT_TILES and HEAD_TILES, the tiles of outputs of a block.
//
// What a product reads lies as its warps read it, the slice of 64 columns together: see `place_of`. A kernel begins
// while the one before it ends, and fetches weights meanwhile.

extern __shared__ __align__(128) unsigned char memory[];

constexpr int GROUP = 64;                  // columns of a block
constexpr int GROUP_SLICE = GROUP * SLICE;  // elements

// Where input k of a column lies: [group][slice][16 columns][8 inputs of 32][8 columns][column][32 inputs][8 inputs].
__device__ __forceinline__ i64 place_of(i64 column, int k, int slices) {
    i64 group = column / GROUP * slices + k / SLICE;
    int part = (int)(column % GROUP) / 16 * 8 + k % 32 / 8 * 2 + (int)(column % 16) / 8;
    return group * GROUP_SLICE + ((part * 32 + (int)(column % 8) * 4 + k % SLICE / 32) * 8 + k % 8);
}

// A warp a column: the embeddings of the bytes or, where id is null, the stream, normalised.
extern "C" __global__ void normalise_columns(const float* table, const int* id, const float* norm, io_t* columns,
                                             i64 count) {
    i64 column = (i64)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    int lane = threadIdx.x % 32;
    let_next_begin();
    wait_for_previous();
    if (column >= count) return;
    const float4* from = (const float4*)(table + (id == nullptr ? column : id[column]) * D_PITCH) + lane;
    float4 x[D_SLICES];
#pragma unroll
    for (int i = 0; i < D_SLICES; i++) x[i] = from[i * 32];
    normalise(x, norm, lane, [&](int k, io4 y) { *(io4*)(columns + place_of(column, k, D_SLICES)) = y; });
}

constexpr int WIDE_WARPS = 8, WIDE_STAGES = 4;  // warps that multiply; one more copies

// A block multiplies 64 columns with TILES tiles of outputs; a warp with ACROSS of the tiles, and DOWN times 16 columns.
template <int TILES>
struct Wide {
    static constexpr int ACROSS = TILES > 4 ? TILES / 4 : 1, WARPS_ACROSS = TILES / ACROSS;
    static constexpr int DOWN = GROUP / 16 * WARPS_ACROSS / WIDE_WARPS;
    struct Stage {
        unsigned char weights[TILES][BLOCK_BYTES];
        io_t columns[GROUP_SLICE];
    };
    struct __align__(128) Shared {
        Stage stages[WIDE_STAGES];
        u64 full[WIDE_STAGES], empty[WIDE_STAGES];
    };
    struct Products {
        float sum[DOWN][ACROSS][4];
    };

    // The copying warp: slice after slice of the block's weights and columns.
    static __device__ __forceinline__ void fetch(Shared& s, const io_t* columns, const unsigned char* weights,
                                                 int tiles, int slices) {
        int lane = threadIdx.x % 32;
        auto fetch_weights = [&](int slice) {
            int stage = slice % WIDE_STAGES;
            if (lane == 0) barrier_expect(&s.full[stage], tiles * BLOCK_BYTES + GROUP_SLICE * 2);
            __syncwarp();
            if (lane < tiles)
                bulk_copy(s.stages[stage].weights[lane], weights + ((i64)lane * slices + slice) * BLOCK_BYTES,
                          BLOCK_BYTES, &s.full[stage]);
        };
        for (int slice = 0; slice < min(WIDE_STAGES, slices); slice++) fetch_weights(slice);
        wait_for_previous();
        for (int slice = 0; slice < slices; slice++) {
            int stage = slice % WIDE_STAGES;
            if (slice >= WIDE_STAGES) {
                barrier_wait(&s.empty[stage], slice / WIDE_STAGES % 2 ^ 1);
                fetch_weights(slice);
            }
            if (lane == 0)
                bulk_copy(s.stages[stage].columns, columns + (i64)slice * GROUP_SLICE, GROUP_SLICE * 2,
                          &s.full[stage]);
        }
    }

    // All slices of a warp's columns and outputs.
    static __device__ __forceinline__ Products multiply_slices(Shared& s, int slices) {
        int warp = threadIdx.x / 32, lane = threadIdx.x % 32, down = warp / WARPS_ACROSS, across = warp % WARPS_ACROSS;
        Products p;
        for (int slice = 0; slice < slices; slice++) {
            int stage = slice % WIDE_STAGES;
            barrier_wait(&s.full[stage], slice / WIDE_STAGES % 2);
            const Stage& from = s.stages[stage];
#pragma unroll
            for (int m = 0; m < DOWN; m++) {
                const uint4* quads = (const uint4*)from.columns + (down * DOWN + m) * 8 * 32 + lane;
                uint4 low[4], high[4];
#pragma unroll
                for (int i = 0; i < 4; i++) low[i] = quads[2 * i * 32], high[i] = quads[(2 * i + 1) * 32];
#pragma unroll
                for (int n = 0; n < ACROSS; n++) {
                    float d[4];
                    multiply(d, low, high, (const uint4*)from.weights[across * ACROSS + n] + lane);
#pragma unroll
                    for (int i = 0; i < 4; i++) p.sum[m][n][i] = slice == 0 ? d[i] : p.sum[m][n][i] + d[i];
                }
            }
            __syncwarp();
            if (lane == 0) barrier_arrive(&s.empty[stage]);
        }
        return p;
    }

    // 64 columns times the block's outputs of weights [tile][slice]; `store` takes a column, an output and the products
    // with it and the next one.
    template <class Store>
    static __device__ __forceinline__ void run(const io_t* columns, const unsigned char* weights, int tiles, int slices,
                                               i64 count, Store store) {
        Shared& s = *(Shared*)memory;
        i64 first_tile = (i64)blockIdx.x * TILES;
        int warp = threadIdx.x / 32, lane = threadIdx.x % 32, here = min(TILES, tiles - (int)first_tile);
        if (threadIdx.x == 0) {
            for (int i = 0; i < WIDE_STAGES; i++) barrier_init(&s.full[i], 1), barrier_init(&s.empty[i], WIDE_WARPS);
            barrier_fence();
        }
        __syncthreads();
        let_next_begin();
        if (warp == WIDE_WARPS) {
            fetch(s, columns + (i64)blockIdx.y * slices * GROUP_SLICE, weights + first_tile * slices * BLOCK_BYTES, here,
                  slices);
            return;
        }
        Products p = multiply_slices(s, slices);
        wait_for_previous();
#pragma unroll
        for (int m = 0; m < DOWN; m++)
#pragma unroll
            for (int n = 0; n < ACROSS; n++)
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    int down = (warp / WARPS_ACROSS * DOWN + m) * 16 + half * 8 + lane / 4;
                    int tile = warp % WARPS_ACROSS * ACROSS + n;
                    i64 column = (i64)blockIdx.y * GROUP + down;
                    if (column < count && tile < here)
                        store(column, (int)(first_tile + tile) * TILE + lane % 4 * 2, p.sum[m][n][half * 2],
                              p.sum[m][n][half * 2 + 1]);
                }
    }
};

// xz (count, tile of x, tile of z, ...).
extern "C" __global__ void __launch_bounds__(32 * WIDE_WARPS + 32)
    in_product(const io_t* columns, const unsigned char* weights, io_t* xz, i64 count) {
    Wide<IN_TILES>::run(columns, weights, 2 * E_TILES, D_SLICES, count, [&](i64 column, int output, float a, float b) {
        *(unsigned*)(xz + column * (2 * E_TILES * TILE) + output) = pack2(a, b);
    });
}
// Added to the stream (count, D_PITCH), or to the bytes' embeddings where id is given.
extern "C" __global__ void __launch_bounds__(32 * WIDE_WARPS + 32)
    out_product(const io_t* y, const unsigned char* weights, float* stream, const float* table, const int* id,
                i64 count) {
    Wide<OUT_TILES>::run(y, weights, D_TILES, E_SLICES, count, [&](i64 column, int output, float a, float b) {
        float2* to = (float2*)(stream + column * D_PITCH + output);
        float2 old = id == nullptr ? *to : *(const float2*)(table + (i64)id[column] * D_PITCH + output);
        *to = make_float2(old.x + rounded(a), old.y + rounded(b));
    });
}
// logits (count, outputs).
extern "C" __global__ void __launch_bounds__(32 * WIDE_WARPS + 32)
    head_product(const io_t* columns, const unsigned char* weights, float* logits, i64 outputs, i64 count) {
    Wide<HEAD_TILES>::run(columns, weights, V_TILES, D_SLICES, count, [&](i64 column, int output, float a, float b) {
        if (output < outputs) logits[column * outputs + output] = rounded(a);
        if (output + 1 < outputs) logits[column * outputs + output + 1] = rounded(b);
    });
}

constexpr int WALK = PARTS;  // columns among which the sequences of a block begin

// Whether a block that owns the sequences beginning in [first, first + WALK) has to do with a column.
__device__ __forceinline__ bool has_ended(const int* begin, i64 column, i64 first, i64 count) {
    return column >= count || (column >= first + WALK && begin[column] >= 0);
}

// The convolution of one layer: a thread walks a channel of the sequences that begin in WALK columns.
extern "C" __global__ void convolve_columns(const io_t* xz, const Channels* channels, float* conv, i64 slot_size,
                                            const int* begin, const int* after, io_t* u, i64 count) {
    int e = blockIdx.x * blockDim.x + threadIdx.x, c = e % TILE;
    i64 first = (i64)blockIdx.y * WALK;
    let_next_begin();
    if (e >= E) return;
    const Channels& own = channels[e / TILE];
    float taps[W], bias = own.conv_bias[c], past[CONV_STATE];
#pragma unroll
    for (int w = 0; w < W; w++) taps[w] = own.taps[c][w];
    wait_for_previous();
    bool begun = false;
    for (i64 column = first; !has_ended(begin, column, first, count); column++) {
        int slot = begin[column];
        begun = begun || slot >= 0;
        if (!begun) {
            if (column == first + WALK - 1) return;
            continue;
        }
        if (slot >= 0)
#pragma unroll
            for (int w = 0; w < CONV_STATE; w++) past[w] = conv[slot * slot_size + e * CONV_STATE + w];
        float x = to_float(xz[(column * E_TILES + e / TILE) * 2 * TILE + c]);
        u[place_of(column, e, E_SLICES)] = from_float(convolve(past, x, taps, bias));
        float* to = conv + after[column] * slot_size + e * CONV_STATE;
#pragma unroll
        for (int w = 0; w < CONV_STATE; w++) to[w] = past[w];
    }
}

constexpr int SELECT_WARPS = 16;

// A tile of outputs of the x-projection for 16 columns, a warp a slice: -> selected (count, SELECT_PITCH).
extern "C" __global__ void __launch_bounds__(32 * SELECT_WARPS)
    select_columns(const io_t* u, const unsigned char* weights, float* selected, i64 count) {
    auto sums = (float (*)[16][TILE])memory;  // [slice][column][output]
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    i64 tile = blockIdx.x, first = (i64)blockIdx.y * 16;
    let_next_begin();
    wait_for_previous();
    for (int slice = warp; slice < E_SLICES; slice += SELECT_WARPS) {
        const uint4* quads = (const uint4*)(u + place_of(first, slice * SLICE, E_SLICES)) + lane;
        uint4 low[4], high[4];
#pragma unroll
        for (int i = 0; i < 4; i++) low[i] = quads[2 * i * 32], high[i] = quads[(2 * i + 1) * 32];
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

constexpr int SCAN_THREADS = 256;

// Step sizes, scan and gate of one layer: PARTS neighbouring threads walk a channel of the sequences that begin in WALK
// columns, WALK columns at a time, whose loads are all under way together.
extern "C" __global__ void __launch_bounds__(SCAN_THREADS, 3)
    scan_columns(const io_t* xz, const io_t* u, const float* selected, const Channels* channels, float* ssm,
                 i64 slot_size, const int* begin, const int* after, io_t* y, i64 count) {
    auto chosen = (float (*)[SELECT_PITCH])memory;  // [WALK]
    int index = blockIdx.x * SCAN_THREADS + threadIdx.x, e = min(index / PARTS, E_TILES * TILE - 1), c = e % TILE;
    int part = index % PARTS, lane = threadIdx.x % 32;
    bool real = index / PARTS < E;
    unsigned group = 0xfu << (lane & ~3);
    i64 first = (i64)blockIdx.y * WALK;
    let_next_begin();
    const Channels& own = channels[e / TILE];
    StepWeights weights(own.dt[c], part);
    float bias = own.dt_bias[c], skip = own.skip[c], A[OWN], h[OWN];
    load_states(A, own.A[c] + part * OWN);
    auto slot_at = [&](i64 slot) { return ssm + slot * slot_size + (i64)e * N_PITCH + part * OWN; };
    wait_for_previous();
    bool begun = false;
    for (i64 base = first; !has_ended(begin, base, first, count); base += WALK) {
        i64 mine = base + part;
        float u_mine = 0.f, z_mine = 0.f, start[WALK][OWN];
        if (mine < count) {
            u_mine = to_float(u[place_of(mine, e, E_SLICES)]);
            z_mine = to_float(xz[((mine * E_TILES + e / TILE) * 2 + 1) * TILE + c]);
        }
        int slots[WALK];
#pragma unroll
        for (int j = 0; j < WALK; j++) {
            slots[j] = has_ended(begin, base + j, first, count) ? -2 : begin[base + j];
            if (slots[j] >= 0 && real) load_states(start[j], slot_at(slots[j]));
        }
        int quads = (int)min((i64)WALK, count - base) * (SELECT_PITCH / 4);
        for (int i = threadIdx.x; i < quads; i += SCAN_THREADS)
            ((float4*)memory)[i] = ((const float4*)(selected + base * SELECT_PITCH))[i];
        __syncthreads();
        bool ended = false;
#pragma unroll
        for (int j = 0; j < WALK; j++) {
            float u_here = __shfl_sync(group, u_mine, lane & ~3 | j), z = __shfl_sync(group, z_mine, lane & ~3 | j);
            ended = ended || slots[j] == -2;
            begun = begun || slots[j] >= 0;
            if (ended || !begun) continue;
            if (slots[j] >= 0)
#pragma unroll
                for (int i = 0; i < OWN; i++) h[i] = start[j][i];
            float dt = step_size(chosen[j], weights, bias, part, group);
            float out = scan(h, dt, u_here, z, chosen[j] + R, chosen[j] + R + N, A, skip, part, group);
            if (!real) continue;
            if (part == 0) y[place_of(base + j, e, E_SLICES)] = from_float(out);
            store_states(h, slot_at(after[base + j]));
        }
        if (ended || (!begun && base == first)) break;
        __syncthreads();
    }
}
