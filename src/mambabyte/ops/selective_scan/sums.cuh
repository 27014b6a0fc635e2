// Sums that cross lanes: over states, through shared memory to the lanes that finish a (position, channel), and over
// channels, inside a warp, for dB and dC.
#pragma once

// A row of shares of a sum over states: each lane leaves one number a channel, the channels of a lane side by side.
// Columns are dealt even ones first, so that the quads of two rows, PARTIAL_ROW apart, read different banks.
__device__ __forceinline__ int share_place(int column, int part) {
    return ((column % 2 * (PART_LANES / 2) + column / 2) * PARTS + part) * CHANNELS;
}
__device__ __forceinline__ void put_shares(float* row, const float (&share)[CHANNELS], const Lane& me) {
    *(float2*)(row + share_place(me.column, me.part)) = make_float2(share[0], share[1]);
}
// The sums for the four channels of this lane's quad.
__device__ __forceinline__ float4 gather(const float* row, const Lane& me) {
    float4 sum = float4();
    if constexpr (PARTS % 2 == 0) {
#pragma unroll
        for (int c = 0; c < 4; c += 2) {
            const float4* from = (const float4*)(row + share_place((me.quad_column + c) / 2, 0));
#pragma unroll
            for (int i = 0; i < PARTS / 2; i++) {
                float4 v = from[i];  // two parts of two channels
                at(sum, c) += v.x + v.z;
                at(sum, c + 1) += v.y + v.w;
            }
        }
    } else {
#pragma unroll
        for (int c = 0; c < 4; c++)
#pragma unroll
            for (int part = 0; part < PARTS; part++) {
                int channel = me.quad_column + c;
                at(sum, c) += row[share_place(channel / CHANNELS, part) + channel % CHANNELS];
            }
    }
    return sum;
}

constexpr int SUMS = 2 * STATES;                                 // dB and dC of one row
constexpr int LANE_SUMS = PART_LANES >= 8 ? 1 : 8 / PART_LANES;  // how many of them a lane holds after sum_channels
constexpr bool TENSOR_CORES = STATES == 16 && IO != 2;

// Add the eight values of a lane (dB and dC of its four states) over the lanes that hold the same states. Lane `column`
// is left with the LANE_SUMS sums from number column * 8 / PART_LANES on (on tensor cores: lane l has sum l / 4 of part
// l % 4).
__device__ __forceinline__ void sum_channels(float (&v)[8], float (&sums)[LANE_SUMS], const Lane& me) {
    if constexpr (TENSOR_CORES) {
        // One m16n8k8 product adds over the four lanes of a group and two registers: B[k][n] is k = lane % 4 (+ 4 in
        // the second register), n = lane / 4. Row m of A picks value m, so D[m][n] is value m summed over the group n =
        // (part, half). TF32 keeps 11 bits of a summand, more than the 16-bit inputs have.
        float d[4] = {0.f, 0.f, 0.f, 0.f};
        int m = threadIdx.x % 32 / 4;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            unsigned first = m == 2 * i ? 0x3f800000u : 0u, second = m == 2 * i + 1 ? 0x3f800000u : 0u;
            asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                "{%10,%11,%12,%13};"
                : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
                : "r"(first), "r"(0u), "r"(second), "r"(0u), "r"(__float_as_uint(v[2 * i])),
                  "r"(__float_as_uint(v[2 * i + 1])), "f"(d[0]), "f"(d[1]), "f"(d[2]), "f"(d[3]));
        }
        sums[0] = d[0] + d[1];  // D's columns 2 part and 2 part + 1 are the two halves of a part's lanes
    } else {
        int width = 8;
#pragma unroll
        for (int lanes = PART_LANES / 2; lanes >= 1; lanes /= 2) {
            bool upper = me.column & lanes;
            if (width > 1) {
                width /= 2;
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    if (i >= width) break;
                    float keep = upper ? v[i + width] : v[i], give = upper ? v[i] : v[i + width];
                    v[i] = keep + __shfl_xor_sync(ALL, give, lanes);
                }
            } else {
                v[0] += __shfl_xor_sync(ALL, v[0], lanes);
            }
        }
#pragma unroll
        for (int i = 0; i < LANE_SUMS; i++) sums[i] = v[i];
    }
}
__device__ __forceinline__ void put_sums(float* row, const float (&sums)[LANE_SUMS], const Lane& me) {
    constexpr int COPIES = TENSOR_CORES ? 1 : PART_LANES > 8 ? PART_LANES / 8 : 1;
    int lane = threadIdx.x % 32, part = TENSOR_CORES ? lane % 4 : me.part;
    int first = TENSOR_CORES ? lane / 4 : me.column / COPIES * LANE_SUMS;
#pragma unroll
    for (int i = 0; i < LANE_SUMS; i++)
        if (COPIES == 1 || me.column % COPIES == 0)
            row[(first + i) / 4 * STATES + part * 4 + (first + i) % 4] = sums[i];
}
