// A whole model reads a few bytes in one launch: every block stays for all layers and meets the others four times in
// each. A block owns whole channels and outputs; what the others must know goes through the second cache level.
//
// A layer's phases, each a product and what follows it:
//   in      norm, in-projection, convolution      -> u           (all blocks; x and z of a channel in one block)
//   select  x-projection                          -> selected    (the blocks from the last down, a tile each)
//   states  step sizes, scan, gate                -> y           (all; the channels of the first phase)
//   out     out-projection, residual              -> stream      (all)
// and after the last layer the norm and the head. Weights do not wait for activations: one warp copies the blocks of
// weights that this thread block will use, in that order, through a ring in shared memory as soon as there is room.
//
// From the host, beside what parts.cuh needs: COLUMNS, the most columns of a launch; STAGES of the ring; CHANNEL_TILES,
// OUT_TILES, SELECT_OWN and HEAD_TILES, the most tiles of a block; SHARED_BYTES, its shared memory.

constexpr int WARPS = 16, THREADS = 32 * WARPS;  // beside the copying warp
constexpr int STAGE_BYTES = WARPS * BLOCK_BYTES;
constexpr int CHANNELS = CHANNEL_TILES * TILE;
constexpr int PITCH = D_PITCH + 8;  // of the normalised columns: rows fall on different banks
constexpr int NORM_BYTES = (1 + BIAS) * D_PITCH * 4;
__device__ constexpr int larger(int a, int b) { return a > b ? a : b; }
constexpr int SUMS = larger(larger(2 * CHANNEL_TILES * D_SLICES, HEAD_TILES * D_SLICES),
                            larger(SELECT_OWN, OUT_TILES) * E_SLICES) * COLUMNS * TILE;

// Everything that does not change between launches. Weights are blocks [layer][tile][slice]; in `in` the tiles of x and
// z alternate.
struct Model {
    const unsigned char *in, *select, *out, *head;
    const Channels* channels;    // [layer][E_TILES]
    const float *norms, *embedding;  // [layers + 1][1 + BIAS][D_PITCH], [V][D_PITCH]
    float *ssm, *conv;           // [slot][layer][E][N_PITCH], [slot][layer][E][CONV_STATE]
    io_t *u, *y;                 // [COLUMNS][E_PITCH], zero beyond E
    float *selected, *stream;    // [COLUMNS][SELECT_PITCH], [COLUMNS][D_PITCH], zero beyond D
    unsigned* counter;
    float* logits;               // [COLUMNS][outputs]
    int layers, outputs;
};

// The columns of a launch. Those of a row are neighbours, in the order of time.
struct Batch {
    int columns, rows;
    int id[COLUMNS], after[COLUMNS];           // of a column: its byte, and the slot that its state goes to
    int before[COLUMNS], first[COLUMNS + 1];   // of a row: the slot that it starts from, and its first column
};

struct __align__(128) Shared {
    u64 full[STAGES], empty[STAGES], own_full[2], own_empty[2];
    __align__(128) unsigned char ring[STAGES][STAGE_BYTES];
    Channels channels[2][CHANNEL_TILES];
    __align__(16) float norm[2][(1 + BIAS) * D_PITCH];
    __align__(16) io_t columns[COLUMNS][PITCH];
    float sums[SUMS];
    float x[COLUMNS][CHANNELS], z[COLUMNS][CHANNELS], dt[COLUMNS][CHANNELS];
    __align__(16) float selected[COLUMNS][SELECT_PITCH];
};
static_assert(sizeof(Shared) <= SHARED_BYTES, "what the host has counted");

struct Range {
    int first, count;
    __device__ Range(int block, int most, int all) : first(block * most), count(max(0, min(most, all - first))) {}
};

// Where a thread block is in its work: what it owns, and its place in the ring and at the grid's barrier.
struct Place {
    Range channels, out, select, head;
    int warp, lane, stage = 0;
    unsigned parity = 0, arrivals;
    int selecting;

    __device__ explicit Place(unsigned base)
        : channels(blockIdx.x, CHANNEL_TILES, E_TILES), out(blockIdx.x, OUT_TILES, D_TILES),
          select(gridDim.x - 1 - blockIdx.x, SELECT_OWN, SELECT_TILES), head(blockIdx.x, HEAD_TILES, V_TILES),
          warp(threadIdx.x / 32), lane(threadIdx.x % 32), arrivals(base),
          selecting((SELECT_TILES + SELECT_OWN - 1) / SELECT_OWN) {}
    __device__ void next_stage() {
        if (++stage == STAGES) stage = 0, parity ^= 1;
    }
};

__device__ __forceinline__ void meet() { block_sync(1, THREADS); }

// Wait until all blocks that arrive in this phase have.
__device__ __forceinline__ void wait_for_grid(const Model& m, unsigned target) {
    if (threadIdx.x == 0) grid_wait(m.counter, target);
    meet();
}
__device__ __forceinline__ void tell_grid(const Model& m) {
    meet();
    if (threadIdx.x == 0) grid_arrive(m.counter);
}

// The copying warp.
__device__ void fetch(Shared& s, Place& me, const unsigned char* blocks, int count) {
    for (int done = 0; done < count; done += WARPS) {
        unsigned bytes = min(WARPS, count - done) * BLOCK_BYTES;
        barrier_wait(&s.empty[me.stage], me.parity ^ 1);
        barrier_expect(&s.full[me.stage], bytes);
        bulk_copy(s.ring[me.stage], blocks + (i64)done * BLOCK_BYTES, bytes, &s.full[me.stage]);
        me.next_stage();
    }
}
__device__ void fetch_all(const Model& m, Shared& s, Place& me) {
    for (int layer = 0; layer <= m.layers; layer++) {
        int half = layer % 2;
        bool last = layer == m.layers;
        const Channels* own = m.channels + (i64)layer * E_TILES + me.channels.first;
        unsigned bytes = last ? 0 : me.channels.count * sizeof(Channels);
        barrier_wait(&s.own_empty[half], layer / 2 % 2 ^ 1);
        barrier_expect(&s.own_full[half], NORM_BYTES + bytes);
        bulk_copy(s.norm[half], m.norms + (i64)layer * (1 + BIAS) * D_PITCH, NORM_BYTES, &s.own_full[half]);
        if (bytes) bulk_copy(s.channels[half], own, bytes, &s.own_full[half]);
        auto from = [&](const unsigned char* matrix, i64 tile, int slices) { return matrix + tile * slices * BLOCK_BYTES; };
        if (last) {
            fetch(s, me, from(m.head, me.head.first, D_SLICES), me.head.count * D_SLICES);
            return;
        }
        fetch(s, me, from(m.in, 2 * ((i64)layer * E_TILES + me.channels.first), D_SLICES), 2 * me.channels.count * D_SLICES);
        fetch(s, me, from(m.select, (i64)layer * SELECT_TILES + me.select.first, E_SLICES), me.select.count * E_SLICES);
        fetch(s, me, from(m.out, (i64)layer * D_TILES + me.out.first, E_SLICES), me.out.count * E_SLICES);
    }
}

// The slices of `tiles` tiles' products with the columns, each slice by a warp, to s.sums [tile][slice][column][TILE].
// `input` is [columns][pitch], in global memory unless SHARED.
template <int SLICES, bool SHARED>
__device__ void multiply_tiles(Shared& s, Place& me, int tiles, const io_t* input, int pitch, int columns) {
    int row = me.lane / 4, quarter = me.lane % 4;
    for (int task = me.warp; task - me.warp < tiles * SLICES; task += WARPS) {
        if (task < tiles * SLICES) {
            const uint4* place = (const uint4*)(input + (i64)row * pitch + task % SLICES * SLICE + quarter * 32);
            const uint4* below = (const uint4*)((const io_t*)place + (i64)8 * pitch);
            uint4 low[4], high[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                low[i] = row < columns ? SHARED ? place[i] : ld_cg(place + i) : uint4();
                high[i] = COLUMNS > 8 && row + 8 < columns ? SHARED ? below[i] : ld_cg(below + i) : uint4();
            }
            float d[4];
            barrier_wait(&s.full[me.stage], me.parity);
            multiply(d, low, high, (const uint4*)(s.ring[me.stage] + me.warp * BLOCK_BYTES) + me.lane);
            float* sums = s.sums + ((i64)task * COLUMNS + row) * TILE + quarter * 2;
            if (row < columns) sums[0] = d[0], sums[1] = d[1];
            if (COLUMNS > 8 && row + 8 < columns) sums[8 * TILE] = d[2], sums[8 * TILE + 1] = d[3];
        } else
            barrier_wait(&s.full[me.stage], me.parity);
        __syncwarp();
        if (me.lane == 0) barrier_arrive(&s.empty[me.stage]);
        me.next_stage();
    }
    meet();
}
template <int SLICES>
__device__ __forceinline__ float total(const Shared& s, int output, int column) {
    const float* sums = s.sums + ((output / TILE) * SLICES * COLUMNS + column) * TILE + output % TILE;
    float sum = sums[0];
#pragma unroll
    for (int slice = 1; slice < SLICES; slice++) sum += sums[slice * COLUMNS * TILE];
    return sum;
}

__device__ const float* stream_of(const Model& m, const Batch& batch, int layer, int column) {
    return layer == 0 ? m.embedding + (i64)batch.id[column] * D_PITCH : m.stream + (i64)column * D_PITCH;
}
__device__ void normalise_all(const Model& m, const Batch& batch, Shared& s, const Place& me, int layer) {
    for (int column = me.warp; column < batch.columns; column += WARPS)
        normalise(stream_of(m, batch, layer, column), s.norm[layer % 2], s.columns[column], me.lane);
    meet();
}

// A thread's (row, channel) in the convolution, or (row, channel, part) in the scan.
struct Item {
    int row, channel, part;
    bool exists;
    i64 e;
    __device__ Item(const Place& me, const Batch& batch, int index, int parts) {
        int channels = me.channels.count * TILE;
        part = index % parts;
        row = channels ? index / parts / channels : batch.rows;
        channel = channels ? index / parts % channels : 0;
        e = (i64)me.channels.first * TILE + channel;
        exists = row < batch.rows && e < E;
    }
};
__device__ __forceinline__ i64 place_in(const Model& m, int slot, int layer, i64 e) {
    return ((i64)slot * m.layers + layer) * E + e;
}

__device__ void in_phase(const Model& m, const Batch& batch, Shared& s, Place& me, int layer) {
    Item item(me, batch, threadIdx.x, 1);
    float past[CONV_STATE];
    if (item.exists) {
#pragma unroll
        for (int w = 0; w < CONV_STATE; w++)
            past[w] = m.conv[place_in(m, batch.before[item.row], layer, item.e) * CONV_STATE + w];
    }
    barrier_wait(&s.own_full[layer % 2], layer / 2 % 2);
    if (layer > 0) wait_for_grid(m, me.arrivals);
    normalise_all(m, batch, s, me, layer);
    multiply_tiles<D_SLICES, true>(s, me, 2 * me.channels.count, &s.columns[0][0], PITCH, batch.columns);
    int outputs = 2 * me.channels.count * TILE;
    for (int i = threadIdx.x; i < outputs * batch.columns; i += THREADS) {
        int output = i % outputs, column = i / outputs, channel = output / (2 * TILE) * TILE + output % TILE;
        (output / TILE % 2 ? s.z : s.x)[column][channel] = rounded(total<D_SLICES>(s, output, column));
    }
    meet();
    if (item.exists) {
        const Channels& own = s.channels[layer % 2][item.channel / TILE];
        int c = item.channel % TILE;
        for (int column = batch.first[item.row]; column < batch.first[item.row + 1]; column++) {
            float u = convolve(past, s.x[column][item.channel], own.taps[c], own.conv_bias[c]);
            s.x[column][item.channel] = u;
            m.u[(i64)column * E_PITCH + item.e] = from_float(u);
            float* after = m.conv + place_in(m, batch.after[column], layer, item.e) * CONV_STATE;
#pragma unroll
            for (int w = 0; w < CONV_STATE; w++) after[w] = past[w];
        }
    }
    tell_grid(m);
    me.arrivals += gridDim.x;
}

__device__ void select_phase(const Model& m, const Batch& batch, Shared& s, Place& me) {
    if (me.select.count > 0) {
        wait_for_grid(m, me.arrivals);
        multiply_tiles<E_SLICES, false>(s, me, me.select.count, m.u, E_PITCH, batch.columns);
        int outputs = me.select.count * TILE;
        for (int i = threadIdx.x; i < outputs * batch.columns; i += THREADS) {
            int output = i % outputs, column = i / outputs;
            m.selected[column * SELECT_PITCH + me.select.first * TILE + output] =
                rounded(total<E_SLICES>(s, output, column));
        }
        tell_grid(m);
    }
    me.arrivals += me.selecting;
}

__device__ void states_phase(const Model& m, const Batch& batch, Shared& s, Place& me, int layer) {
    int channels = me.channels.count * TILE, items = batch.rows * channels * PARTS;
    unsigned group = 0xfu << (me.lane & ~(PARTS - 1));
    Item item(me, batch, threadIdx.x, PARTS);
    float h[OWN];
    auto load = [&](const Item& item) {
        load_states(h, m.ssm + place_in(m, batch.before[item.row], layer, item.e) * N_PITCH + item.part * OWN);
    };
    if (item.exists) load(item);
    wait_for_grid(m, me.arrivals);
    for (int i = threadIdx.x; i < batch.columns * SELECT_PITCH; i += THREADS)
        (&s.selected[0][0])[i] = ld_cg(m.selected + i);
    meet();
    Channels* own = s.channels[layer % 2];
    for (int i = threadIdx.x; i < batch.columns * channels * PARTS; i += THREADS) {
        int part = i % PARTS, channel = i / PARTS % channels, column = i / PARTS / channels, c = channel % TILE;
        const Channels& mine = own[channel / TILE];
        float dt = step_size(s.selected[column], mine.dt[c], mine.dt_bias[c], part, group);
        if (part == 0) s.dt[column][channel] = dt;
    }
    meet();
    for (int index = threadIdx.x; index < items; index += THREADS) {
        if (index != threadIdx.x) {
            item = Item(me, batch, index, PARTS);
            if (item.exists) load(item);
        }
        if (!item.exists) continue;
        int channel = item.channel, c = channel % TILE;
        const Channels& mine = own[channel / TILE];
        for (int column = batch.first[item.row]; column < batch.first[item.row + 1]; column++) {
            const float* B = s.selected[column] + R;
            float y = scan(h, s.dt[column][channel], s.x[column][channel], s.z[column][channel], B, B + N,
                           mine.A[c] + item.part * OWN, mine.skip[c], item.part, group);
            if (item.part == 0) m.y[(i64)column * E_PITCH + item.e] = from_float(y);
            store_states(h, m.ssm + place_in(m, batch.after[column], layer, item.e) * N_PITCH + item.part * OWN);
        }
    }
    tell_grid(m);
    if (threadIdx.x == 0) barrier_arrive(&s.own_empty[layer % 2]);
    me.arrivals += gridDim.x;
}

__device__ void out_phase(const Model& m, const Batch& batch, Shared& s, Place& me, int layer) {
    int outputs = me.out.count * TILE;
    float old = 0.f;
    auto stream = [&](int i) { return stream_of(m, batch, layer, i / outputs) + me.out.first * TILE + i % outputs; };
    if (threadIdx.x < outputs * batch.columns) old = ld_cg(stream(threadIdx.x));
    wait_for_grid(m, me.arrivals);
    multiply_tiles<E_SLICES, false>(s, me, me.out.count, m.y, E_PITCH, batch.columns);
    for (int i = threadIdx.x; i < outputs * batch.columns; i += THREADS) {
        if (i != threadIdx.x) old = ld_cg(stream(i));
        m.stream[(i64)(i / outputs) * D_PITCH + me.out.first * TILE + i % outputs] =
            old + rounded(total<E_SLICES>(s, i % outputs, i / outputs));
    }
    tell_grid(m);
    me.arrivals += gridDim.x;
}

__device__ void head_phase(const Model& m, const Batch& batch, Shared& s, Place& me) {
    barrier_wait(&s.own_full[m.layers % 2], m.layers / 2 % 2);
    if (me.head.count == 0) return;
    wait_for_grid(m, me.arrivals);
    normalise_all(m, batch, s, me, m.layers);
    multiply_tiles<D_SLICES, true>(s, me, me.head.count, &s.columns[0][0], PITCH, batch.columns);
    int outputs = me.head.count * TILE;
    for (int i = threadIdx.x; i < outputs * batch.columns; i += THREADS) {
        int output = me.head.first * TILE + i % outputs;
        if (output < m.outputs)
            m.logits[(i64)(i / outputs) * m.outputs + output] = rounded(total<D_SLICES>(s, i % outputs, i / outputs));
    }
}

// `base` is the counter's value before the launch, which adds layers * (3 grid + blocks that select) to it.
extern "C" __global__ void __launch_bounds__(THREADS + 32, 1)
    read_columns(const __grid_constant__ Model m, const __grid_constant__ Batch batch, i64 base) {
    extern __shared__ __align__(128) unsigned char memory[];
    Shared& s = *(Shared*)memory;
    Place me((unsigned)base);
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) barrier_init(&s.full[i], 1), barrier_init(&s.empty[i], WARPS);
        for (int i = 0; i < 2; i++) barrier_init(&s.own_full[i], 1), barrier_init(&s.own_empty[i], 1);
        barrier_fence();
    }
    __syncthreads();
    if (me.warp == WARPS) {
        if (me.lane == 0) fetch_all(m, s, me);
        return;
    }
    for (int layer = 0; layer < m.layers; layer++) {
        in_phase(m, batch, s, me, layer);
        select_phase(m, batch, s, me);
        states_phase(m, batch, s, me, layer);
        out_phase(m, batch, s, me, layer);
    }
    head_phase(m, batch, s, me);
}
