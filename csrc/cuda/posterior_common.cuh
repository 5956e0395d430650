// The loop over steps that posterior_forward.cu and posterior_backward.cu share.
//
// A block, or a cluster of blocks, has a batch tile of 8 rows. In each step
//
//   latent buffer [8][parts x Z]  ->  hidden units [8][M]  ->  sums over M for 16 latents  ->  latent buffer
//
// where the two arrows in the middle are products with weights as the left operand, in tiles of 16 units, and each end
// is finished elementwise by the lanes that hold the product's accumulators. What the buffers mean is the Pass's:
//
//   kParts      parts of the latent buffer: z, or the gradients of (mu, raw). The posterior's hidden units are a
//               product over all parts, the prior's over the first.
//   kSums       sums over the posterior's hidden units for each latent: (mu, raw), or dz. The prior's units add to
//               the first.
//   hidden_input(step, net, tile)             what a tile of 16 hidden units needs beside its product (net: 0 the
//                                             posterior, 1 the prior); only to be loaded
//   hidden_finish<tiles>(products, inputs, kept, first)
//                                             products of so many tiles from `first` on, of each network, become what
//                                             the hidden buffer holds; kept: what store_hidden writes to global memory
//   latent_input(inputs, step, group)         what a group of 16 latents needs beside its sums, as loaded;
//   prepared(step, group, inputs)             and as used
//   prefetch(step, index, count)              asks for what both inputs read into L2; of `count` warps the one `index`
//   latent_finish(sums, prepared, group)      gives the group's Result: its parts of the latent buffer, and what
//                                             store_latent writes
//   first_latent(group), store_first          the same before the first step
//   store_last(group, result)                 what is written behind the last
//   Weights: weight_in(net, tile, part, k), weight_out(net, group, sum, unit)    tiles of the weights
//
// Where the weights are in registers, a warp has the same tiles and the same group in every step. For it the Pass gives
//
//   hidden_of(first), latents_of(group, first_row)   what loads, and stores, the tiles from `first` on of each network,
//                                             or a group's latents in one or both of a lane's rows: their addresses
//                                             move by a step. Latents::prepared(inputs) as above
//   latent_nothing()                          inputs where there is nothing to load
//   hidden_start(input)                       what a tile's product begins with
//   hidden_activate(products, inputs, kept)   what it becomes
//   latent_start(sum, group)                  what a sum begins with
//   latents(sums, prepared)                   what the sums become: the group's Result, in so many rows
//   first_latents, store_last_of              the same before the first step; what is written behind the last
//   prefetch_hidden(net, tile), prefetch_latent(which, group)
//
// Loads are issued a step, or a product, before they are used. Weights live in registers (run_in_registers), or as
// tiles in shared memory and, what does not fit, in the workspace, from where they are streamed through L2
// (run_in_memory).
//
// In a cluster a block has a slice of M: its sums are partial. Either every block sends its sums to all, and each
// computes all latents (one exchange); or it sends them to the one block that a group belongs to, which sends the new
// latents to all (two exchanges, less traffic). Sums are added in the order of the blocks: bits do not depend on
// timing.
#pragma once

#include "posterior_launch.cuh"
#include "posterior_memory.cuh"
#include "posterior_registers.cuh"
#include "posterior_sequences.cuh"
