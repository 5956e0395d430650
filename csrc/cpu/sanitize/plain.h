// The ops as plain loops in double: what the checks compare the kernels with.
#pragma once

#include <math.h>
#include <stdint.h>

#include <vector>

#include "../kernels.h"

namespace vssn {

using Array = std::vector<double>;

inline double sigmoid(double x) { return 1 / (1 + exp(-x)); }

// ---- GRU -------------------------------------------------------------------------------------------------

struct Gru {
    int64_t steps, B, H;
    bool reverse;
    std::vector<int64_t> lengths;  // empty: none
    Array gates_x, h0, weight, bias;
    int64_t length(int64_t b) const { return lengths.empty() ? steps : lengths[b]; }
    const int64_t* lengths_pointer() const { return lengths.empty() ? nullptr : lengths.data(); }
};

// Output [T, B, H], then h_n [B, H].
inline Array plain(const Gru& p) {
    Array output(p.steps * p.B * p.H, 0.0), h_n(p.h0);
    for (int64_t b = 0; b < p.B; ++b)
        for (int64_t s = 0; s < p.length(b); ++s) {
            const int64_t t = p.reverse ? p.length(b) - 1 - s : s;
            const Array h(h_n.begin() + b * p.H, h_n.begin() + (b + 1) * p.H);
            for (int64_t u = 0; u < p.H; ++u) {
                double product[3];
                for (int gate = 0; gate < 3; ++gate) {
                    product[gate] = p.bias[gate * p.H + u];
                    for (int64_t j = 0; j < p.H; ++j) product[gate] += p.weight[(gate * p.H + u) * p.H + j] * h[j];
                }
                const double* x = &p.gates_x[(t * p.B + b) * 3 * p.H + u];
                const double r = sigmoid(x[0] + product[0]), z = sigmoid(x[p.H] + product[1]);
                const double n = tanh(x[2 * p.H] + r * product[2]);
                h_n[b * p.H + u] = output[(t * p.B + b) * p.H + u] = (1 - z) * n + z * h[u];
            }
        }
    output.insert(output.end(), h_n.begin(), h_n.end());
    return output;
}

// ---- Posterior -------------------------------------------------------------------------------------------

struct Posterior {
    int64_t steps, B, M, Z;
    Activation activation;
    bool prior;
    std::vector<int64_t> lengths;
    Array context, eps, z0, weight_z, weight_out, bias_out;
    Array prior_context, prior_weight_z, prior_weight_mu, prior_bias_mu;
    int64_t length(int64_t b) const { return lengths.empty() ? steps : lengths[b]; }
    const int64_t* lengths_pointer() const { return lengths.empty() ? nullptr : lengths.data(); }
};

constexpr double kMinLogvar = -3;

inline double act(Activation activation, double x) {
    switch (activation) {
        case Activation::tanh:
            return tanh(x);
        case Activation::relu:
            return x > 0 ? x : 0;
        case Activation::leaky_relu:
            return x > 0 ? x : kLeakySlope * x;
        case Activation::elu:
            return x > 0 ? x : expm1(x);
        case Activation::identity:
            return x;
        default:
            return x * sigmoid(x);
    }
}

// z, mu and logvar, each [T, B, Z].
inline Array plain(const Posterior& p) {
    const int64_t size = p.steps * p.B * p.Z;
    Array result(3 * size, 0.0);
    for (int64_t b = 0; b < p.B; ++b) {
        Array z(p.z0.begin() + b * p.Z, p.z0.begin() + (b + 1) * p.Z);
        for (int64_t t = 0; t < p.length(b); ++t) {
            auto hidden = [&](const Array& context, const Array& weight) {
                Array values(p.M);
                for (int64_t m = 0; m < p.M; ++m) {
                    values[m] = context[(t * p.B + b) * p.M + m];
                    for (int64_t j = 0; j < p.Z; ++j) values[m] += weight[m * p.Z + j] * z[j];
                    values[m] = act(p.activation, values[m]);
                }
                return values;
            };
            auto product = [&](const Array& weight, int64_t row, const Array& values) {
                double sum = 0;
                for (int64_t m = 0; m < p.M; ++m) sum += weight[row * p.M + m] * values[m];
                return sum;
            };
            const Array own = hidden(p.context, p.weight_z);
            const Array other = p.prior ? hidden(p.prior_context, p.prior_weight_z) : Array();
            for (int64_t j = 0; j < p.Z; ++j) {
                double mu = p.bias_out[j] + product(p.weight_out, j, own);
                if (p.prior) mu += p.prior_bias_mu[j] + product(p.prior_weight_mu, j, other);
                const double raw = p.bias_out[p.Z + j] + product(p.weight_out, p.Z + j, own);
                const double logvar = kMinLogvar + log1p(exp(raw - kMinLogvar));
                const int64_t at = (t * p.B + b) * p.Z + j;
                z[j] = mu + exp(logvar / 2) * p.eps[at];
                result[at] = z[j];
                result[size + at] = mu;
                result[2 * size + at] = logvar;
            }
        }
    }
    return result;
}

// ---- Interleaved -----------------------------------------------------------------------------------------

struct Interleaved {
    int64_t steps, B, H, E, M, Z;
    Activation embed_activation, activation;
    Scale scale;
    std::vector<int64_t> lengths;
    std::vector<char> resets;  // [T, B]; empty: none
    // gates_x, embed_context, context, eps [T, B, .], h0, z0, reset_h, reset_z [B, .], weight_embed, weight_zh,
    // weight_hh, bias_hh, weight_h, weight_out, bias_out
    static constexpr int kSequences = 4, kInputs = 15;
    Array in[kInputs];
    int64_t length(int64_t b) const { return lengths.empty() ? steps : lengths[b]; }
    const int64_t* lengths_pointer() const { return lengths.empty() ? nullptr : lengths.data(); }
    int64_t size(int input) const {
        const int64_t rows = steps * B,
                      sizes[kInputs] = {rows * 3 * H, rows * E,  rows * M,  rows * Z, B * H, B * Z,     B * H, B * Z,
                                        E * Z,        3 * H * E, 3 * H * H, 3 * H,    M * H, 2 * Z * M, 2 * Z};
        return sizes[input];
    }
};

constexpr double kMinStd = 0.2;

// h [T, B, H], then z, mu and logvar, each [T, B, Z].
inline Array plain(const Interleaved& p) {
    const auto& [gates_x, embed_context, context, eps, h0, z0, reset_h, reset_z, weight_embed, weight_zh, weight_hh,
                 bias_hh, weight_h, weight_out, bias_out] = p.in;
    const int64_t rows = p.steps * p.B;
    Array result(rows * (p.H + 3 * p.Z), 0.0);
    const auto dot = [](const Array& weight, int64_t row, const Array& values) {
        double sum = 0;
        for (size_t j = 0; j < values.size(); ++j) sum += weight[row * values.size() + j] * values[j];
        return sum;
    };
    const auto row_of = [](const Array& values, int64_t b, int64_t width) {
        return Array(values.begin() + b * width, values.begin() + (b + 1) * width);
    };
    for (int64_t b = 0; b < p.B; ++b) {
        Array h = row_of(h0, b, p.H), z = row_of(z0, b, p.Z);
        for (int64_t t = 0; t < p.length(b); ++t) {
            const int64_t at = t * p.B + b;
            if (!p.resets.empty() && p.resets[at]) {
                h = row_of(reset_h, b, p.H);
                z = row_of(reset_z, b, p.Z);
            }
            Array e(p.E), hidden(p.M), next(p.H);
            for (int64_t i = 0; i < p.E; ++i)
                e[i] = act(p.embed_activation, embed_context[at * p.E + i] + dot(weight_embed, i, z));
            for (int64_t i = 0; i < p.H; ++i) {
                double x[3], a[3];
                for (int gate = 0; gate < 3; ++gate) {
                    x[gate] = gates_x[(at * 3 + gate) * p.H + i] + dot(weight_zh, gate * p.H + i, e);
                    a[gate] = bias_hh[gate * p.H + i] + dot(weight_hh, gate * p.H + i, h);
                }
                const double r = sigmoid(x[0] + a[0]), u = sigmoid(x[1] + a[1]), n = tanh(x[2] + r * a[2]);
                next[i] = (1 - u) * n + u * h[i];
                result[at * p.H + i] = next[i];
            }
            h = next;
            for (int64_t i = 0; i < p.M; ++i)
                hidden[i] = act(p.activation, context[at * p.M + i] + dot(weight_h, i, h));
            for (int64_t i = 0; i < p.Z; ++i) {
                const double mu = bias_out[i] + dot(weight_out, i, hidden);
                const double raw = bias_out[p.Z + i] + dot(weight_out, p.Z + i, hidden);
                const double logvar = p.scale == Scale::softplus ? 2 * log(log1p(exp(raw)) + kMinStd)
                                                                 : kMinLogvar + log1p(exp(raw - kMinLogvar));
                z[i] = mu + exp(logvar / 2) * eps[at * p.Z + i];
                double* out = &result[rows * p.H + at * p.Z + i];
                out[0] = z[i];
                out[rows * p.Z] = mu;
                out[2 * rows * p.Z] = logvar;
            }
        }
    }
    return result;
}

// ---- Gaussian --------------------------------------------------------------------------------------------

struct Gaussian {
    int64_t N, Z;
    Array values[5];  // mu, logvar, eps, prior_mu, prior_logvar [N, Z]
};

// z [N, Z], then kl [N].
inline Array plain(const Gaussian& p) {
    Array result(p.N * p.Z + p.N, 0.0);
    for (int64_t i = 0; i < p.N * p.Z; ++i) {
        const double mu = p.values[0][i], lq = p.values[1][i], mp = p.values[3][i], lp = p.values[4][i];
        result[i] = mu + exp(lq / 2) * p.values[2][i];
        result[p.N * p.Z + i / p.Z] += 0.5 * (lp - lq + exp(lq - lp) + (mu - mp) * (mu - mp) * exp(-lp) - 1);
    }
    return result;
}

// ---- MLP -------------------------------------------------------------------------------------------------

struct Mlp {
    int64_t N, M, O;
    std::vector<int64_t> widths;  // of the inputs
    Activation activation;
    bool two, floored;        // whether there is a second layer, and a floored half of its output
    std::vector<Array> x, w;  // of each input [N, K], [M, K]
    Array bias, weight_out, bias_out;
    int64_t heads() const { return floored ? 2 : 1; }
};

// out [N, O] (one layer: [N, M]), then with a floor logvar [N, O].
inline Array plain(const Mlp& p) {
    Array out, logvar;
    for (int64_t n = 0; n < p.N; ++n) {
        Array hidden(p.bias);
        for (int64_t m = 0; m < p.M; ++m) {
            for (size_t i = 0; i < p.x.size(); ++i)
                for (int64_t k = 0; k < p.widths[i]; ++k)
                    hidden[m] += p.w[i][m * p.widths[i] + k] * p.x[i][n * p.widths[i] + k];
            if (p.two) hidden[m] = act(p.activation, hidden[m]);
        }
        if (!p.two) {
            out.insert(out.end(), hidden.begin(), hidden.end());
            continue;
        }
        for (int64_t o = 0; o < p.heads() * p.O; ++o) {
            double value = p.bias_out[o];
            for (int64_t m = 0; m < p.M; ++m) value += p.weight_out[o * p.M + m] * hidden[m];
            if (o < p.O)
                out.push_back(value);
            else
                logvar.push_back(kMinLogvar + log1p(exp(value - kMinLogvar)));
        }
    }
    out.insert(out.end(), logvar.begin(), logvar.end());
    return out;
}

// ---- Bernoulli -------------------------------------------------------------------------------------------

struct BernoulliCase {
    int64_t N, X;
    Array logits, x;  // [N, X]
};

// log_prob [N]
inline Array plain(const BernoulliCase& p) {
    Array result(p.N, 0.0);
    for (int64_t i = 0; i < p.N * p.X; ++i)
        result[i / p.X] += p.x[i] * p.logits[i] - (fmax(p.logits[i], 0) + log1p(exp(-fabs(p.logits[i]))));
    return result;
}

}  // namespace vssn
