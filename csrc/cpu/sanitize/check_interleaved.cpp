// The chain of a recurrence and its latents.
#include <math.h>

#include <array>
#include <string>
#include <vector>

#include "checks.h"
#include "tests.h"

namespace checks {

namespace {

// What each step started from, zeros at padding.
template <class T>
std::vector<T> before(const Interleaved& p, const Array& states, const Array& first, const Array& anew, int64_t width) {
    std::vector<T> found(states.size(), T(0));
    for (int64_t row = 0; row < p.steps * p.B; ++row) {
        const int64_t t = row / p.B, b = row % p.B;
        if (t >= p.length(b)) continue;
        const double* from = !p.resets.empty() && p.resets[row] ? &anew[b * width]
                             : t == 0                           ? &first[b * width]
                                                                : &states[(row - p.B) * width];
        for (int64_t i = 0; i < width; ++i) found[row * width + i] = T(from[i]);
    }
    return found;
}

// Returns the gradients of Interleaved's inputs, in their order.
template <class T>
Array run(const Interleaved& p, int threads, const Array& cotangent, const std::string& name, double tolerance) {
    const int64_t rows = p.steps * p.B, *lengths = p.lengths_pointer();
    const int64_t widths[] = {3 * p.H, p.E, p.M, p.Z};
    std::vector<Sequence<T>> sequences;
    for (int i = 0; i < p.kSequences; ++i) sequences.emplace_back(p.in[i], p.steps, p.B, widths[i], lengths, i);
    std::vector<T> in[p.kInputs];
    for (int i = p.kSequences; i < p.kInputs; ++i) in[i] = cast<T>(p.in[i]);
    std::vector<T> h = fresh<T>(rows * p.H), z = fresh<T>(rows * p.Z), mu = fresh<T>(rows * p.Z);
    std::vector<T> logvar = fresh<T>(rows * p.Z), gates = fresh<T>(rows * 4 * p.H), embed = fresh<T>(rows * p.E);
    std::vector<T> hidden = fresh<T>(rows * p.M);
    std::vector<char> resets(p.resets);
    const bool* set = resets.empty() ? nullptr : reinterpret_cast<const bool*>(resets.data());
    const InterleavedForward<T> forward{.threads = threads,
                                        .steps = p.steps,
                                        .B = p.B,
                                        .H = p.H,
                                        .E = p.E,
                                        .M = p.M,
                                        .Z = p.Z,
                                        .embed_activation = p.embed_activation,
                                        .activation = p.activation,
                                        .scale = p.scale,
                                        .min_logvar = Compute<T>(kMinLogvar),
                                        .min_std = Compute<T>(kMinStd),
                                        .lengths = lengths,
                                        .resets = set,
                                        .gates_x = sequences[0].view(),
                                        .embed_context = sequences[1].view(),
                                        .context = sequences[2].view(),
                                        .eps = sequences[3].view(),
                                        .h0 = {in[4].data(), p.H},
                                        .z0 = {in[5].data(), p.Z},
                                        .reset_h = {in[6].data(), p.H},
                                        .reset_z = {in[7].data(), p.Z},
                                        .weight_embed = {in[8].data(), p.Z},
                                        .weight_zh = {in[9].data(), p.E},
                                        .weight_hh = {in[10].data(), p.H},
                                        .weight_h = {in[12].data(), p.H},
                                        .weight_out = {in[13].data(), p.M},
                                        .bias_hh = in[11].data(),
                                        .bias_out = in[14].data(),
                                        .h = h.data(),
                                        .z = z.data(),
                                        .mu = mu.data(),
                                        .logvar = logvar.data(),
                                        .gates = gates.data(),
                                        .embed = embed.data(),
                                        .hidden = hidden.data()};
    call(entries<T>().interleaved_forward, entries<T>().interleaved_forward_workspace, forward);
    std::vector<T> outputs;
    for (const auto* part : {&h, &z, &mu, &logvar}) outputs.insert(outputs.end(), part->begin(), part->end());
    check_close(name + " forward", outputs, plain(p), tolerance);

    std::vector<Sequence<T>> grad_outputs;
    auto at = cotangent.begin();
    for (int64_t width : {p.H, p.Z, p.Z, p.Z}) {
        grad_outputs.emplace_back(Array(at, at + rows * width), p.steps, p.B, width, lengths, int64_t(width % 3));
        at += rows * width;
    }
    const std::vector<T> before_h = before<T>(p, Array(h.begin(), h.end()), p.in[4], p.in[6], p.H);
    const std::vector<T> before_z = before<T>(p, Array(z.begin(), z.end()), p.in[5], p.in[7], p.Z);
    std::vector<T> embed_active(embed), active(hidden);
    const auto activate = [](std::vector<T>& values, Activation activation) {
        for (T& value : values)
            if (keeps_input(activation)) value = T(act(activation, double(value)));
    };
    activate(embed_active, p.embed_activation);
    activate(active, p.activation);
    std::vector<T> grads[p.kInputs], grad_a = fresh<T>(rows * p.H), grad_out = fresh<T>(rows * 2 * p.Z);
    for (int i = 0; i < p.kInputs; ++i) grads[i] = fresh<T>(p.size(i));
    const InterleavedBackward<T> backward{.threads = threads,
                                          .steps = p.steps,
                                          .B = p.B,
                                          .H = p.H,
                                          .E = p.E,
                                          .M = p.M,
                                          .Z = p.Z,
                                          .embed_activation = p.embed_activation,
                                          .activation = p.activation,
                                          .scale = p.scale,
                                          .min_logvar = Compute<T>(kMinLogvar),
                                          .min_std = Compute<T>(kMinStd),
                                          .lengths = lengths,
                                          .resets = set,
                                          .grad_h = grad_outputs[0].view(),
                                          .grad_z = grad_outputs[1].view(),
                                          .grad_mu = grad_outputs[2].view(),
                                          .grad_logvar = grad_outputs[3].view(),
                                          .before_h = {before_h.data(), p.H},
                                          .before_z = {before_z.data(), p.Z},
                                          .h = h.data(),
                                          .logvar = logvar.data(),
                                          .gates = gates.data(),
                                          .embed = embed.data(),
                                          .hidden = hidden.data(),
                                          .embed_active = {embed_active.data(), p.E},
                                          .active = {active.data(), p.M},
                                          .eps = sequences[3].view(),
                                          .weight_embed = {in[8].data(), p.Z},
                                          .weight_zh = {in[9].data(), p.E},
                                          .weight_hh = {in[10].data(), p.H},
                                          .weight_h = {in[12].data(), p.H},
                                          .weight_out = {in[13].data(), p.M},
                                          .grad_gates_x = grads[0].data(),
                                          .grad_a = grad_a.data(),
                                          .grad_embed_context = grads[1].data(),
                                          .grad_context = grads[2].data(),
                                          .grad_out = grad_out.data(),
                                          .grad_eps = grads[3].data(),
                                          .grad_h0 = grads[4].data(),
                                          .grad_z0 = grads[5].data(),
                                          .grad_reset_h = grads[6].data(),
                                          .grad_reset_z = grads[7].data(),
                                          .grad_weight_embed = grads[8].data(),
                                          .grad_weight_zh = grads[9].data(),
                                          .grad_weight_hh = grads[10].data(),
                                          .grad_bias_hh = grads[11].data(),
                                          .grad_weight_h = grads[12].data(),
                                          .grad_weight_out = grads[13].data(),
                                          .grad_bias_out = grads[14].data()};
    call(entries<T>().interleaved_backward, entries<T>().interleaved_backward_workspace, backward);
    Array all;
    for (const std::vector<T>& part : grads) all.insert(all.end(), part.begin(), part.end());
    return all;
}

}  // namespace

void test_interleaved(int64_t steps, int64_t B, std::array<int64_t, 4> sizes, Activation activation, Scale scale,
                      bool resets, std::vector<int64_t> lengths, int threads) {
    const auto [H, E, M, Z] = sizes;
    const std::string name = "interleaved " + std::to_string(steps) + "x" + std::to_string(B) + "x" +
                             std::to_string(H) + " activation " + std::to_string(int(activation)) +
                             (resets ? " resets" : "") + (lengths.empty() ? "" : " lengths") + " on " +
                             std::to_string(threads);
    draw_anew(name);
    Interleaved p{steps, B, H, E, M, Z, activation, activation, scale, lengths, {}, {}};
    for (int64_t row = 0; resets && row < steps * B; ++row) p.resets.push_back(row % 3 == 1);
    const int64_t inputs[] = {1, 1, 1, 1, 1, 1, 1, 1, Z, E, H, 1, H, M, 1};
    for (int i = 0; i < p.kInputs; ++i) p.in[i] = normal(p.size(i), inputs[i] > 1 ? 0.2 / sqrt(double(inputs[i])) : 1);
    // Away from the kinks of the activations, where float and double may see different slopes.
    for (int i : {1, 2})
        for (double& x : p.in[i]) x += x < 0 ? -2 : 2;
    const Array cotangent = normal(steps * B * (H + 3 * Z));
    const Array grads = run<double>(p, threads, cotangent, name, 1e-12);
    check_close(name + " float backward", run<float>(p, threads, cotangent, name, 1e-5), grads, 1e-4);
    Array ways[p.kInputs], way;
    for (int i = 0; i < p.kInputs; ++i) {
        // Without resets nobody goes on from there, and the kernel says so with zeros.
        ways[i] = normal(p.size(i));
        way.insert(way.end(), ways[i].begin(), ways[i].end());
    }
    const double difference = slope([&](double step) {
        Interleaved moved(p);
        for (int i = 0; i < p.kInputs; ++i) moved.in[i] = plus(p.in[i], ways[i], step);
        return dot(plain(moved), cotangent);
    });
    check_close(name + " backward", dot(grads, way), difference, 1e-6);
}

}  // namespace checks
