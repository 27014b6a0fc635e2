// A whole model reads a few bytes in one launch: every block stays for all layers. A block owns whole channels and
// outputs; what the others must know it sends them as mail, 4 bytes and a tag that says of which layer they are, so that
// whoever needs them looks until they are there: no barrier of the grid, no fence. Many blocks that look at much mail at
// once keep it from being delivered, so one warp of a block looks at a flag for each sender first, except where that is little mail.
//
// A layer's phases, each a product and what follows it:
//   in      norm, in-projection, convolution      -> u           (all blocks; x and z of a channel in one block)
//   select  x-projection                          -> selected    (the blocks from the last down, a tile each)
//   states  step sizes, scan, gate                -> y           (all; the channels of the first phase)
//   out     out-projection, residual              -> stream      (all)
// and after the last layer the norm and the head. A place in the mail is written again a layer later, by a block that
// has by then mail which depends on everybody's having read it.
//
// Weights do not wait for activations: one warp copies the blocks of weights that this thread block will use, in that
// order, through a ring in shared memory as soon as there is room.
//
// From the host, beside what parts.cuh needs: COLUMNS, the most columns of a launch; STAGES of the ring; CHANNEL_TILES,
// OUT_TILES, SELECT_OWN and HEAD_TILES, the most tiles of a block; SHARED_BYTES, its shared memory.

constexpr int WARPS = 16, THREADS = 32 * WARPS;  // beside the copying warp
constexpr int STAGE_BYTES = WARPS * BLOCK_BYTES;
constexpr int CHANNELS = CHANNEL_TILES * TILE;
constexpr int PITCH = D_PITCH + 8;  // of the normalised columns: rows fall on different banks
constexpr int FLAGS = 256;          // at least the blocks, in whole quads
// Columns up to which mail is looked at without waiting for the flags.
#ifndef DIRECT_U
#define DIRECT_U 16
#define DIRECT_SELECTED 2
#define DIRECT_Y 0
#define DIRECT_STREAM 1
#endif
constexpr int NORM_BYTES = (1 + BIAS) * D_PITCH * 4;
__device__ constexpr int larger(int a, int b) { return a > b ? a : b; }
constexpr int OUT_BLOCKS = (D_TILES + OUT_TILES - 1) / OUT_TILES;
constexpr int SELECT_BLOCKS = (SELECT_TILES + SELECT_OWN - 1) / SELECT_OWN;
constexpr int SUMS = larger(larger(2 * CHANNEL_TILES * D_SLICES, HEAD_TILES * D_SLICES),
                            larger(SELECT_OWN, OUT_TILES) * E_SLICES) * COLUMNS * TILE;

// Everything that does not change between launches. Weights are blocks [layer][tile][slice]; in `in` the tiles of x and
// z alternate. u and y hold two channels in a piece of mail, selected and stream one float.
struct Model {
    const unsigned char *in, *select, *out, *head;
    const Channels* channels;        // [layer][E_TILES]
    const float *norms, *embedding;  // [layers + 1][1 + BIAS][D_PITCH], [V][D_PITCH]
    float *ssm, *conv;               // [slot][layer][E][N_PITCH], [slot][layer][E][CONV_STATE]
    u64 *u, *y, *selected, *stream;  // u and y: see mail_place; [COLUMNS][SELECT_PITCH], [COLUMNS][D_PITCH]
    unsigned* flags;                 // [4][FLAGS], one a block
    float* logits;                   // [COLUMNS][outputs]
    int layers, outputs;
};

// The columns of a launch. Those of a row are neighbours, in the order of time.
struct Batch {
    int columns, rows;
    int id[COLUMNS], after[COLUMNS];          // of a column: its byte, and the slot that its state goes to
    int before[COLUMNS], first[COLUMNS + 1];  // of a row: the slot that it starts from, and its first column
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

// Where a thread block is in its work: what it owns, and its place in the ring.
struct Place {
    Range channels, out, select, head;
    int warp, lane, stage = 0;
    unsigned parity = 0;

    __device__ Place()
        : channels(blockIdx.x, CHANNEL_TILES, E_TILES), out(blockIdx.x, OUT_TILES, D_TILES),
          select(gridDim.x - 1 - blockIdx.x, SELECT_OWN, SELECT_TILES), head(blockIdx.x, HEAD_TILES, V_TILES),
          warp(threadIdx.x / 32), lane(threadIdx.x % 32) {}
    __device__ void next_stage() {
        if (++stage == STAGES) stage = 0, parity ^= 1;
    }
};

__device__ __forceinline__ void meet() { block_sync(1, THREADS); }

enum Sent { U, SELECTED, Y, STREAM };
// Whether so few columns' mail may be looked at without waiting for the flags.
__device__ __forceinline__ bool direct(Sent what, int columns) {
    constexpr int most[4] = {DIRECT_U, DIRECT_SELECTED, DIRECT_Y, DIRECT_STREAM};
    return columns <= most[what];
}
// All threads have sent their part.
__device__ __forceinline__ void raise_flag(const Model& m, const Batch& batch, Sent what, unsigned tag) {
    if (direct(what, batch.columns)) return;
    meet();
    if (threadIdx.x == 0) raise(m.flags + what * FLAGS + blockIdx.x, tag);
}
// Until the flags of `senders` blocks are up, from block `first` on; not at all where the mail itself may be looked at.
__device__ __forceinline__ void wait_for_flags(const Model& m, const Batch& batch, Sent what, int first, int senders,
                                               unsigned tag) {
    if (direct(what, batch.columns)) return;
    if (threadIdx.x < 32) {
        bool up;
        do {
            up = true;
            for (int i = threadIdx.x * 4; i < first + senders; i += 128) {
                uint4 flags = look_at(m.flags + what * FLAGS + i);
#pragma unroll
                for (int j = 0; j < 4; j++)
                    up = up && (i + j < first || i + j >= first + senders || (&flags.x)[j] == tag);
            }
            if (!up) look_again();
        } while (!up);
    }
    meet();
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
    auto from = [](const unsigned char* matrix, i64 tile, int slices) { return matrix + tile * slices * BLOCK_BYTES; };
    for (int layer = 0; layer <= m.layers; layer++) {
        int half = layer % 2;
        bool last = layer == m.layers;
        unsigned bytes = last ? 0 : me.channels.count * sizeof(Channels);
        barrier_wait(&s.own_empty[half], layer / 2 % 2 ^ 1);
        barrier_expect(&s.own_full[half], NORM_BYTES + bytes);
        bulk_copy(s.norm[half], m.norms + (i64)layer * (1 + BIAS) * D_PITCH, NORM_BYTES, &s.own_full[half]);
        if (last) {
            fetch(s, me, from(m.head, me.head.first, D_SLICES), me.head.count * D_SLICES);
            return;
        }
        bulk_copy(s.channels[half], m.channels + (i64)layer * E_TILES + me.channels.first, bytes, &s.own_full[half]);
        i64 channels = (i64)layer * E_TILES + me.channels.first, select = (i64)layer * SELECT_TILES + me.select.first;
        fetch(s, me, from(m.in, 2 * channels, D_SLICES), 2 * me.channels.count * D_SLICES);
        fetch(s, me, from(m.select, select, E_SLICES), me.select.count * E_SLICES);
        fetch(s, me, from(m.out, (i64)layer * D_TILES + me.out.first, E_SLICES), me.out.count * E_SLICES);
    }
}

// Where the mail of a pair of channels lies: [8 columns][slice][4 channels of 32][column][32 channels][pair], so that a
// warp that reads a slice of 8 columns reads whole lines.
__device__ __forceinline__ i64 mail_place(int column, int k) {
    int row = (column / 8 * E_SLICES + k / SLICE) * 8 + k % 32 / 4;
    return ((i64)row * 8 + column % 8) * 8 + k % SLICE / 32 * 2 + k % 4 / 2;
}

// The first `count` of COUNT pairs of neighbouring pieces of mail, `stride` pieces apart, once they all have this tag;
// zeros after them.
template <int COUNT>
__device__ __forceinline__ void open_mail(uint2 (&data)[COUNT], const u64* mail, int stride, int count, unsigned tag) {
    bool ready;
    do {
        u64 a[COUNT], b[COUNT];
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            a[i] = b[i] = (u64)tag << 32;
            if (i < count) get(mail + i * stride, a[i], b[i]);
        }
        ready = true;
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            data[i] = make_uint2((unsigned)a[i], (unsigned)b[i]);
            ready = ready && (unsigned)(a[i] >> 32) == tag && (unsigned)(b[i] >> 32) == tag;
        }
        if (!ready) look_again();
    } while (!ready);
}

typedef uint4 Quads[4];

// A lane's part of a slice of 16 columns, for `multiply`: from the normalised columns, or from the mail.
__device__ __forceinline__ void take_columns(uint4 (&low)[4], uint4 (&high)[4], const Shared& s, const Place& me,
                                             int slice, int columns) {
    int row = me.lane / 4, place = slice * SLICE + me.lane % 4 * 32;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        low[i] = row < columns ? ((const uint4*)&s.columns[row][place])[i] : uint4();
        high[i] = COLUMNS > 8 && row + 8 < columns ? ((const uint4*)&s.columns[row + 8][place])[i] : uint4();
    }
}
__device__ __forceinline__ void take_columns(uint4 (&low)[4], uint4 (&high)[4], const u64* mail, const Place& me,
                                             int slice, int columns, unsigned tag) {
    int row = me.lane / 4, place = slice * SLICE + me.lane % 4 * 32;
    int pairs = max(0, min(8, (E_TILES * TILE - place) / 4));  // beyond, nobody writes
    auto take = [&](uint4 (&to)[4], int column) {
        uint2 data[8];
        open_mail(data, mail + mail_place(column, place), 64, column < columns ? pairs : 0, tag);
#pragma unroll
        for (int i = 0; i < 4; i++) to[i] = make_uint4(data[2 * i].x, data[2 * i].y, data[2 * i + 1].x, data[2 * i + 1].y);
    };
    take(low, row);
    if (COLUMNS > 8) take(high, row + 8);
    else
        for (int i = 0; i < 4; i++) high[i] = uint4();
    __syncwarp();
}

// The slices of `tiles` tiles' products with the columns that `take` gives, each slice by a warp, to s.sums
// [tile][slice][column][TILE].
template <int SLICES, class Take>
__device__ __forceinline__ void multiply_tiles(Shared& s, Place& me, int tiles, int columns, Take take) {
    int row = me.lane / 4, output = me.lane % 4 * 2;
    for (int task = me.warp; task - me.warp < tiles * SLICES; task += WARPS) {
        if (task < tiles * SLICES) {
            uint4 low[4], high[4];
            float d[4];
            take(low, high, task % SLICES);
            barrier_wait(&s.full[me.stage], me.parity);
            multiply(d, low, high, (const uint4*)(s.ring[me.stage] + me.warp * BLOCK_BYTES) + me.lane);
            float* sums = s.sums + ((i64)task * COLUMNS + row) * TILE + output;
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

// A lane's quads of a column of the stream, all asked for at once; zeros beyond what is ever sent.
__device__ __forceinline__ void open_stream(float4 (&x)[D_SLICES], const u64* mail, int lane, unsigned tag) {
    bool ready;
    do {
        ready = true;
#pragma unroll
        for (int i = 0; i < D_SLICES; i++) {
            u64 a, b, c, d;
            a = b = c = d = (u64)tag << 32;
            if (i * SLICE + lane * 4 < D_TILES * TILE) get(mail + i * SLICE, a, b), get(mail + i * SLICE + 2, c, d);
            x[i] = make_float4(__uint_as_float((unsigned)a), __uint_as_float((unsigned)b), __uint_as_float((unsigned)c),
                               __uint_as_float((unsigned)d));
            unsigned wrong = (unsigned)(a >> 32) ^ tag | (unsigned)(b >> 32) ^ tag | (unsigned)(c >> 32) ^ tag |
                             (unsigned)(d >> 32) ^ tag;
            ready = ready && wrong == 0;
        }
        if (!ready) look_again();
    } while (!ready);
}

// A warp a column: the stream, from the embedding in the first layer, normalised.
__device__ __forceinline__ void normalise_all(const Model& m, const Batch& batch, Shared& s, const Place& me, int layer,
                                              unsigned tag) {
    for (int column = me.warp; column < batch.columns; column += WARPS) {
        float4 x[D_SLICES];
        const float4* bytes = (const float4*)(m.embedding + (i64)batch.id[column] * D_PITCH) + me.lane;
        if (layer == 0)
#pragma unroll
            for (int i = 0; i < D_SLICES; i++) x[i] = bytes[i * 32];
        else
            open_stream(x, m.stream + (i64)column * D_PITCH + me.lane * 4, me.lane, tag);
        normalise(x, s.norm[layer % 2], me.lane, [&](int place, io4 y) { *(io4*)&s.columns[column][place] = y; });
    }
    meet();
}

// A thread's (row, channel) in the convolution, or (row, channel, part) in the scan.
struct Item {
    int row, channel, part;
    i64 e;
    __device__ Item(const Place& me, int index, int parts)
        : row(index / parts / CHANNELS), channel(index / parts % CHANNELS), part(index % parts),
          e((i64)me.channels.first * TILE + channel) {}
    __device__ bool sends(const Place& me) const { return channel < me.channels.count * TILE; }
};
__device__ __forceinline__ i64 place_in(const Model& m, int slot, int layer, i64 e) {
    return ((i64)slot * m.layers + layer) * E + e;
}

__device__ __forceinline__ void in_phase(const Model& m, const Batch& batch, Shared& s, Place& me, int layer,
                                         unsigned tag) {
    Item item(me, threadIdx.x, 1);
    bool exists = item.row < batch.rows && item.sends(me), real = exists && item.e < E;
    float past[CONV_STATE];
    const float* before = m.conv + (real ? place_in(m, batch.before[item.row], layer, item.e) * CONV_STATE : 0);
#pragma unroll
    for (int w = 0; w < CONV_STATE; w++) past[w] = real ? before[w] : 0.f;
    barrier_wait(&s.own_full[layer % 2], layer / 2 % 2);
    if (layer > 0) wait_for_flags(m, batch, STREAM, 0, OUT_BLOCKS, tag - 1);
    normalise_all(m, batch, s, me, layer, tag - 1);
    multiply_tiles<D_SLICES>(s, me, 2 * me.channels.count, batch.columns, [&](Quads& low, Quads& high, int slice) {
        take_columns(low, high, s, me, slice, batch.columns);
    });
    for (int i = threadIdx.x; i < 2 * CHANNELS * batch.columns; i += THREADS) {
        int output = i % (2 * CHANNELS), column = i / (2 * CHANNELS);
        (output / TILE % 2 ? s.z : s.x)[column][output / (2 * TILE) * TILE + output % TILE] =
            rounded(total<D_SLICES>(s, output, column));
    }
    meet();
    const Channels& own = s.channels[layer % 2][item.channel / TILE];
    int c = item.channel % TILE, last = exists ? batch.first[item.row + 1] : 0;
    unsigned pair = 3u << (me.lane & ~1);
    for (int column = exists ? batch.first[item.row] : 0; column < last; column++) {
        float u = convolve(past, s.x[column][item.channel], own.taps[c], own.conv_bias[c]);
        float next = __shfl_xor_sync(pair, u, 1);
        if (c % 2 == 0) put(m.u + mail_place(column, (int)item.e), pack2(u, next), tag);
        s.x[column][item.channel] = u;
        float* after = m.conv + place_in(m, batch.after[column], layer, item.e) * CONV_STATE;
#pragma unroll
        for (int w = 0; w < CONV_STATE; w++)
            if (real) after[w] = past[w];
    }
    raise_flag(m, batch, U, tag);
}

__device__ __forceinline__ void select_phase(const Model& m, const Batch& batch, Shared& s, Place& me, unsigned tag) {
    if (me.select.count == 0) return;
    wait_for_flags(m, batch, U, 0, gridDim.x, tag);
    multiply_tiles<E_SLICES>(s, me, me.select.count, batch.columns, [&](Quads& low, Quads& high, int slice) {
        take_columns(low, high, m.u, me, slice, batch.columns, tag);
    });
    for (int i = threadIdx.x; i < SELECT_OWN * TILE * batch.columns; i += THREADS) {
        int output = i % (SELECT_OWN * TILE), column = i / (SELECT_OWN * TILE);
        if (output < me.select.count * TILE)
            put(m.selected + (i64)column * SELECT_PITCH + me.select.first * TILE + output,
                __float_as_uint(rounded(total<E_SLICES>(s, output, column))), tag);
    }
    raise_flag(m, batch, SELECTED, tag);
}

__device__ __forceinline__ void states_phase(const Model& m, const Batch& batch, Shared& s, Place& me, int layer,
                                             unsigned tag) {
    unsigned group = 0xfu << (me.lane & ~3), two_channels = 0xffu << (me.lane & ~7);
    float h[OWN];
    auto load = [&](const Item& item) {
        if (item.row < batch.rows && item.sends(me) && item.e < E)
            load_states(h, m.ssm + place_in(m, batch.before[item.row], layer, item.e) * N_PITCH + item.part * OWN);
        else
#pragma unroll
            for (int i = 0; i < OWN; i++) h[i] = 0.f;
    };
    load(Item(me, threadIdx.x, PARTS));
    wait_for_flags(m, batch, SELECTED, gridDim.x - SELECT_BLOCKS, SELECT_BLOCKS, tag);
    constexpr int PAIRS = SELECT_TILES * TILE / 2;
    for (int i = threadIdx.x; i < batch.columns * PAIRS; i += THREADS) {
        int column = i / PAIRS, place = i % PAIRS * 2;
        uint2 data[1];
        open_mail(data, m.selected + (i64)column * SELECT_PITCH + place, 2, 1, tag);
        s.selected[column][place] = __uint_as_float(data[0].x);
        s.selected[column][place + 1] = __uint_as_float(data[0].y);
    }
    meet();
    Channels* own = s.channels[layer % 2];
    for (int i = threadIdx.x; i < batch.columns * CHANNELS * PARTS; i += THREADS) {
        int part = i % PARTS, channel = i / PARTS % CHANNELS, column = i / PARTS / CHANNELS, c = channel % TILE;
        const Channels& mine = own[channel / TILE];
        float dt = step_size(s.selected[column], StepWeights(mine.dt[c], part), mine.dt_bias[c], part, group);
        if (part == 0) s.dt[column][channel] = dt;
    }
    meet();
    for (int index = threadIdx.x; index < batch.rows * CHANNELS * PARTS; index += THREADS) {
        Item item(me, index, PARTS);
        if (!item.sends(me)) continue;
        if (index != threadIdx.x) load(item);
        int channel = item.channel, c = channel % TILE;
        const Channels& mine = own[channel / TILE];
        for (int column = batch.first[item.row]; column < batch.first[item.row + 1]; column++) {
            const float* B = s.selected[column] + R;
            float y = scan(h, s.dt[column][channel], s.x[column][channel], s.z[column][channel], B, B + N,
                           mine.A[c] + item.part * OWN, mine.skip[c], item.part, group);
            float next = __shfl_down_sync(two_channels, y, PARTS);
            if (me.lane % 8 == 0) put(m.y + mail_place(column, (int)item.e), pack2(y, next), tag);
            if (item.e < E)
                store_states(h, m.ssm + place_in(m, batch.after[column], layer, item.e) * N_PITCH + item.part * OWN);
        }
    }
    raise_flag(m, batch, Y, tag);
}

// `stream` is this thread's output of this thread's column, which no other thread changes.
__device__ __forceinline__ void out_phase(const Model& m, const Batch& batch, Shared& s, Place& me, int layer,
                                          float& stream, unsigned tag) {
    wait_for_flags(m, batch, Y, 0, gridDim.x, tag);
    multiply_tiles<E_SLICES>(s, me, me.out.count, batch.columns, [&](Quads& low, Quads& high, int slice) {
        take_columns(low, high, m.y, me, slice, batch.columns, tag);
    });
    if (threadIdx.x == 0) barrier_arrive(&s.own_empty[layer % 2]);
    int output = threadIdx.x % (OUT_TILES * TILE), column = threadIdx.x / (OUT_TILES * TILE);
    if (output < me.out.count * TILE && column < batch.columns) {
        int place = me.out.first * TILE + output;
        if (layer == 0) stream = m.embedding[(i64)batch.id[column] * D_PITCH + place];
        stream += rounded(total<E_SLICES>(s, output, column));
        put(m.stream + (i64)column * D_PITCH + place, __float_as_uint(stream), tag);
    }
    raise_flag(m, batch, STREAM, tag);
}

__device__ __forceinline__ void head_phase(const Model& m, const Batch& batch, Shared& s, Place& me, unsigned tag) {
    barrier_wait(&s.own_full[m.layers % 2], m.layers / 2 % 2);
    if (me.head.count == 0) return;
    wait_for_flags(m, batch, STREAM, 0, OUT_BLOCKS, tag);
    normalise_all(m, batch, s, me, m.layers, tag);
    multiply_tiles<D_SLICES>(s, me, me.head.count, batch.columns, [&](Quads& low, Quads& high, int slice) {
        take_columns(low, high, s, me, slice, batch.columns);
    });
    int outputs = me.head.count * TILE;
    for (int i = threadIdx.x; i < outputs * batch.columns; i += THREADS) {
        int output = me.head.first * TILE + i % outputs;
        if (output < m.outputs)
            m.logits[(i64)(i / outputs) * m.outputs + output] = rounded(total<D_SLICES>(s, i % outputs, i / outputs));
    }
}

// Layer l's mail has the tag first_tag + l, which none of the launch before had.
extern "C" __global__ void __launch_bounds__(THREADS + 32, 1)
    read_columns(const __grid_constant__ Model m, const __grid_constant__ Batch batch, i64 first_tag) {
    extern __shared__ __align__(128) unsigned char memory[];
    Shared& s = *(Shared*)memory;
    Place me;
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) barrier_init(&s.full[i], 1), barrier_init(&s.empty[i], WARPS);
        for (int i = 0; i < 2; i++) barrier_init(&s.own_full[i], 1), barrier_init(&s.own_empty[i], 1);
        barrier_fence();
    }
    // step_size reads up to R_PITCH values, those beyond R with weights of zero
    for (int i = threadIdx.x; i < COLUMNS * SELECT_PITCH; i += THREADS + 32) (&s.selected[0][0])[i] = 0.f;
    __syncthreads();
    if (me.warp == WARPS) {
        if (me.lane == 0) fetch_all(m, s, me);
        return;
    }
    unsigned tag = (unsigned)first_tag;
    float stream = 0.f;
    for (int layer = 0; layer < m.layers; layer++, tag++) {
        in_phase(m, batch, s, me, layer, tag);
        select_phase(m, batch, s, me, tag);
        states_phase(m, batch, s, me, layer, tag);
        out_phase(m, batch, s, me, layer, stream, tag);
    }
    head_phase(m, batch, s, me, tag - 1);
}
