// What a step on the device is made of, one part at a time: barriers, exchanges, memories, products, functions.
//
//   nvcc -std=c++17 -O3 -gencode=arch=compute_90a,code=sm_90a -o gpu_floor benchmarks/gpu_floor.cu
//   ./gpu_floor [all | list | NAME...]
//
// A line for each measurement, `name,unit,value`: the median of RUNS runs behind one that warms up. To stderr goes its
// name before it runs, and then least and most of its runs. Exit status 1 where one failed. Cycles are of the
// multiprocessor's clock, taken in the kernels (gpu_floor.cuh).
#include "gpu_floor.cuh"

#include <algorithm>
#include <cstdio>
#include <functional>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

namespace vssn::gpu {

namespace {

constexpr int kRuns = 7;

void check(cudaError_t error, const char* what) {
    if (error != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

#define CHECK(call) check(call, #call)

using Kernel = void (*)(Task);

double median(std::vector<double> values) {
    std::sort(values.begin(), values.end());
    return values[values.size() / 2];
}

enum class Of { slowest, first };  // of the blocks' cycles

// What the kernels use; it is there until the process ends.
class Device {
  public:
    Device() : limits_(device_limits()) {
        CHECK(cudaMalloc(&task_.counters, kCounterBytes));
        CHECK(cudaMalloc(&task_.data, kData));
        CHECK(cudaMalloc(&task_.cycles, kMostBlocks * sizeof(long long)));
        CHECK(cudaMalloc(&task_.sink, size_t{kMostBlocks} * kMostThreads * sizeof(float)));
        CHECK(cudaMalloc(&task_.wrong, sizeof(int)));
    }
    Device(const Device&) = delete;

    const DeviceLimits& limits() const { return limits_; }
    const Task& task() const { return task_; }

    // Cycles of a round, in each of the runs behind the first.
    std::vector<double> runs(Kernel kernel, const Launch& shape, int rounds, int bytes = 0, bool stores = false,
                             Of of = Of::slowest) const {
        if (shape.grid_x > kMostBlocks || shape.threads > kMostThreads) throw std::runtime_error("too many blocks");
        Task task = task_;
        task.rounds = rounds;
        task.bytes = bytes;
        task.stores = stores;
        std::vector<double> found;
        for (int run = 0; run <= kRuns; ++run) {
            CHECK(cudaMemset(task_.counters, 0, kCounterBytes));
            CHECK(cudaMemset(task_.wrong, 0, sizeof(int)));
            CHECK(cudaMemset(task_.cycles, 0, kMostBlocks * sizeof(long long)));
            if (const char* error = launch(kernel, shape, task)) throw std::runtime_error(error);
            CHECK(cudaGetLastError());
            CHECK(cudaDeviceSynchronize());
            std::vector<long long> cycles(static_cast<size_t>(shape.grid_x));
            CHECK(cudaMemcpy(cycles.data(), task_.cycles, cycles.size() * sizeof(long long), cudaMemcpyDeviceToHost));
            int wrong = 0;
            CHECK(cudaMemcpy(&wrong, task_.wrong, sizeof(int), cudaMemcpyDeviceToHost));
            if (wrong) throw std::runtime_error("other bytes came than were sent");
            const long long chosen = of == Of::first ? cycles[0] : *std::max_element(cycles.begin(), cycles.end());
            if (chosen <= 0) throw std::runtime_error("no cycles were counted");
            if (run > 0) found.push_back(static_cast<double>(chosen) / rounds);
        }
        return found;
    }

    // A cycle through a word of each line of so many bytes, in an order that jumps.
    void write_chain(int bytes) const {
        const int lines = bytes / 4 / kLine;
        std::vector<unsigned> order(static_cast<size_t>(lines)), words(static_cast<size_t>(bytes) / 4, 1);
        std::iota(order.begin(), order.end(), 0u);
        std::shuffle(order.begin() + 1, order.end(), std::mt19937(1));
        for (int i = 0; i < lines; ++i) words[order[i] * kLine] = order[(i + 1) % lines] * kLine;
        CHECK(cudaMemcpy(task_.data, words.data(), static_cast<size_t>(bytes), cudaMemcpyHostToDevice));
    }

    void fill(int value) const { CHECK(cudaMemset(task_.data, value, kData)); }

  private:
    static constexpr size_t kCounterBytes = 16 * kLine * sizeof(unsigned);
    DeviceLimits limits_;
    Task task_;
};

struct Measurement {
    std::string name, unit;
    std::function<std::vector<double>()> runs;
};

std::vector<double> scaled(std::vector<double> values, double factor) {
    for (double& value : values) value *= factor;
    return values;
}

std::vector<double> over(double amount, std::vector<double> values) {
    for (double& value : values) value = amount / value;
    return values;
}

Launch shaped(int64_t blocks, int threads, int cluster = 1, size_t shared_bytes = 0, bool cooperative = false) {
    Launch shape;
    shape.grid_x = blocks;
    shape.threads = threads;
    shape.cluster = cluster;
    shape.shared_bytes = shared_bytes;
    shape.cooperative = cooperative;
    return shape;
}

// Microseconds from one empty kernel to the next, launched one by one or as a graph.
std::vector<double> launch_gaps(const Device& device, bool graph, bool cooperative, int cluster) {
    constexpr int kLaunches = 1000;
    cudaStream_t stream;
    CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    Launch shape = shaped(cluster, 32, cluster, 0, cooperative);
    shape.stream = stream;
    const auto all = [&] {
        for (int i = 0; i < kLaunches; ++i)
            if (const char* error = launch(empty_kernel, shape, device.task())) throw std::runtime_error(error);
    };
    all();
    CHECK(cudaStreamSynchronize(stream));
    cudaGraphExec_t instance = nullptr;
    if (graph) {
        cudaGraph_t captured;
        CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed));
        try {
            all();
        } catch (...) {
            cudaStreamEndCapture(stream, &captured);
            throw;
        }
        CHECK(cudaStreamEndCapture(stream, &captured));
        CHECK(cudaGraphInstantiate(&instance, captured, 0));
        CHECK(cudaGraphDestroy(captured));
    }
    cudaEvent_t begin, end;
    CHECK(cudaEventCreate(&begin));
    CHECK(cudaEventCreate(&end));
    std::vector<double> found;
    for (int run = 0; run <= kRuns; ++run) {
        CHECK(cudaEventRecord(begin, stream));
        if (graph)
            CHECK(cudaGraphLaunch(instance, stream));
        else
            all();
        CHECK(cudaEventRecord(end, stream));
        CHECK(cudaEventSynchronize(end));
        float ms = 0;
        CHECK(cudaEventElapsedTime(&ms, begin, end));
        if (run > 0) found.push_back(1e3 * ms / kLaunches);
    }
    if (graph) CHECK(cudaGraphExecDestroy(instance));
    CHECK(cudaEventDestroy(begin));
    CHECK(cudaEventDestroy(end));
    CHECK(cudaStreamDestroy(stream));
    return found;
}

std::vector<Measurement> measurements(const Device& device) {
    std::vector<Measurement> all;
    const auto add = [&](std::string name, const char* unit, std::function<std::vector<double>()> runs) {
        all.push_back({std::move(name), unit, std::move(runs)});
    };
    const auto number = [](int64_t n) { return std::to_string(n); };
    const Device* d = &device;
    const int multiprocessors = std::min(device.limits().multiprocessors, kMostBlocks);
    const auto clusters_up_to = [&](std::initializer_list<int> sizes) {
        std::vector<int> found;
        for (const int size : sizes)
            if (size <= device.limits().max_cluster) found.push_back(size);
        return found;
    };

    // The clock, while all multiprocessors multiply: 20 million cycles.
    const auto clock = [d, multiprocessors] {
        return over(1e9 / 20000, d->runs(clock_kernel, shaped(multiprocessors, 512), 20000));
    };
    add("sm_clock_first", "MHz", clock);

    // How many clusters of 256 threads run at once.
    for (const int cluster : clusters_up_to({8, 16}))
        for (const int kilobytes : {32, device.limits().shared_bytes / 1024})
            add("clusters_at_once_" + number(cluster) + "_" + number(kilobytes) + "KB", "clusters", [=] {
                const Launch shape = shaped(cluster, 256, cluster, static_cast<size_t>(kilobytes) * 1024);
                return std::vector<double>{
                    static_cast<double>(clusters_at_once(cluster_exchange_kernel<false>, shape))};
            });

    // Barriers of a block and of a cluster.
    for (const int threads : {64, 128, 256, 512})
        add("block_barrier_" + number(threads), "cycles",
            [=] { return d->runs(block_barrier_kernel, shaped(1, threads), 500); });
    for (const int cluster : clusters_up_to({2, 4, 8, 16}))
        for (const int threads : {128, 256}) {
            const Launch shape = shaped(cluster, threads, cluster);
            const std::string name = number(cluster) + "x" + number(threads);
            add("cluster_barrier_" + name, "cycles",
                [=] { return d->runs(cluster_barrier_kernel<true>, shape, 2000); });
            add("cluster_barrier_relaxed_" + name, "cycles",
                [=] { return d->runs(cluster_barrier_kernel<false>, shape, 2000); });
        }

    // A step's exchange in a cluster: so many bytes come to every block. all: with as many clusters as there can be.
    // block_scope: waits acquire in the scope of the block, which invalidates no L1 cache.
    for (const int cluster : clusters_up_to({4, 8, 16}))
        for (const int kilobytes : {1, 4, 8, 16}) {
            const int bytes = 1024 * kilobytes;
            const int threads = std::min(256, std::max(kWarp, bytes / 16 / cluster * 4));
            const Launch shape = shaped(cluster, threads, cluster, 16 + 2 * static_cast<size_t>(bytes));
            const std::string name = "cluster_exchange_" + number(cluster) + "_" + number(kilobytes) + "KB";
            add(name, "cycles", [=] { return d->runs(cluster_exchange_kernel<false>, shape, 2000, bytes); });
            if (kilobytes == 4) {
                add(name + "_block_scope", "cycles",
                    [=] { return d->runs(cluster_exchange_kernel<true>, shape, 2000, bytes); });
                add(name + "_all", "cycles", [=] {
                    Launch wide = shape;
                    wide.shared_bytes = 120 * 1024;  // one block to a multiprocessor
                    wide.grid_x = int64_t{cluster} * clusters_at_once(cluster_exchange_kernel<false>, wide);
                    if (wide.grid_x == 0) throw std::runtime_error("no such cluster fits");
                    return d->runs(cluster_exchange_kernel<false>, wide, 2000, bytes);
                });
            }
        }

    // One way in a cluster, and shared memory near and far.
    for (const int cluster : clusters_up_to({2, 8, 16})) {
        const Launch shape = shaped(cluster, 32, cluster, 4096);
        add("send_4B_one_way_" + number(cluster), "cycles",
            [=] { return d->runs(cluster_ping_kernel<unsigned>, shape, 2000, 0, false, Of::first); });
        add("send_16B_one_way_" + number(cluster), "cycles",
            [=] { return d->runs(cluster_ping_kernel<Vector<uint32_t, 4>>, shape, 2000, 0, false, Of::first); });
        add("far_shared_latency_" + number(cluster), "cycles",
            [=] { return d->runs(shared_chain_kernel<true>, shape, 500, 0, false, Of::first); });
    }
    add("shared_latency", "cycles", [=] { return d->runs(shared_chain_kernel<false>, shaped(1, 32, 1, 4096), 500); });
    constexpr int kReaders = 256;
    constexpr double kRead = 8.0 * kReaders;
    for (const int cluster : clusters_up_to({2, 8, 16})) {
        const Launch words = shaped(cluster, kReaders, cluster, 8 * kReaders * 4);
        const Launch vectors = shaped(cluster, kReaders, cluster, 8 * kReaders * 16);
        add("far_shared_rate_4B_" + number(cluster), "bytes/cycle/SM",
            [=] { return over(kRead * 4, d->runs(shared_rate_kernel<true, 4>, words, 1000)); });
        add("far_shared_rate_16B_" + number(cluster), "bytes/cycle/SM",
            [=] { return over(kRead * 16, d->runs(shared_rate_kernel<true, 16>, vectors, 1000)); });
    }
    const Launch words = shaped(1, kReaders, 1, 8 * kReaders * 4), vectors = shaped(1, kReaders, 1, 8 * kReaders * 16);
    add("shared_rate_4B", "bytes/cycle/SM",
        [=] { return over(kRead * 4, d->runs(shared_rate_kernel<false, 4>, words, 1000)); });
    add("shared_rate_16B", "bytes/cycle/SM",
        [=] { return over(kRead * 16, d->runs(shared_rate_kernel<false, 16>, vectors, 1000)); });
    add("ldmatrix_x4_rate", "bytes/cycle/SM",
        [=] { return over(kRead * 16, d->runs(ldmatrix_kernel, vectors, 1000)); });

    // Blocks of a grid: the barrier alone, and the exchange of 16 KB (8 rows of 1024 units of 16 bits) and 64 KB.
    std::vector<int> grids;
    for (const int blocks : {8, 16, 32, 64, multiprocessors})
        if (blocks <= multiprocessors && (grids.empty() || blocks > grids.back())) grids.push_back(blocks);
    for (const int blocks : grids) {
        const Launch shape = shaped(blocks, 256, 1, 0, true);
        add("grid_barrier_" + number(blocks), "cycles",
            [=] { return d->runs(grid_barrier_kernel<false>, shape, 1000); });
        for (const int kilobytes : {16, 64})
            if (1024 * kilobytes % (16 * blocks) == 0)  // 4 vectors for each thread, and as many from each block
                add("grid_exchange_" + number(blocks) + "_" + number(kilobytes) + "KB", "cycles",
                    [=] { return d->runs(grid_barrier_kernel<true>, shape, 500, 1024 * kilobytes); });
    }
    add("grid_one_way", "cycles",
        [=] { return d->runs(grid_ping_kernel, shaped(2, 32, 1, 0, true), 1000, 0, false, Of::first); });
    for (const int blocks : {1, 64}) {
        const Launch shape = shaped(std::min(blocks, multiprocessors), 256);
        add("release_" + number(blocks), "cycles", [=] { return d->runs(release_kernel, shape, 500); });
        add("release_behind_stores_" + number(blocks), "cycles",
            [=] { return d->runs(release_kernel, shape, 500, 0, true); });
    }

    // L2. The first run of each has brought the bytes there.
    add("l2_latency", "cycles", [=] {
        d->write_chain(8 << 20);
        return d->runs(l2_chain_kernel, shaped(1, 1), (8 << 20) / 4 / kLine / 8);  // every line
    });
    const auto l2_rate = [=](Kernel kernel, int blocks, int threads, int at_once, int bytes, bool shared) {
        d->fill(1);
        const double read = 16.0 * l2_vectors(bytes, shared ? 1 : blocks, threads, at_once);
        return over(read, d->runs(kernel, shaped(blocks, threads), 100, bytes));
    };
    const int some = static_cast<int>(kData), few = 64 << 10;
    add("l2_rate_256", "bytes/cycle/SM",
        [=] { return l2_rate(l2_rate_kernel<8, false>, multiprocessors, 256, 8, some, false); });
    add("l2_rate_512", "bytes/cycle/SM",
        [=] { return l2_rate(l2_rate_kernel<8, false>, multiprocessors, 512, 8, some, false); });
    add("l2_rate_1024", "bytes/cycle/SM",
        [=] { return l2_rate(l2_rate_kernel<4, false>, multiprocessors, 1024, 4, some, false); });
    add("l2_rate_same_64KB", "bytes/cycle/SM",
        [=] { return l2_rate(l2_rate_kernel<8, true>, multiprocessors, 256, 8, few, true); });
    add("l2_rate_one_SM", "bytes/cycle/SM", [=] { return l2_rate(l2_rate_kernel<8, true>, 1, 256, 8, few, true); });

    // Products: a chain of one warp; then cycles of an instruction in each of the multiprocessor's four parts, by the
    // warps that a part has and the chains of a warp.
    const auto products = [&](const std::string& type, Kernel one, Kernel four, Kernel eight) {
        add("mma_latency_" + type, "cycles", [=] { return scaled(d->runs(one, shaped(1, 32), 500), 1.0 / kUnrolled); });
        for (const int warps : {1, 2, 4}) {
            const Launch shape = shaped(1, 4 * warps * kWarp);
            for (const int chains : {1, 4, 8})
                add("mma_" + type + "_" + number(warps) + "x" + number(chains), "cycles/instruction", [=] {
                    const Kernel kernel = chains == 1 ? one : chains == 4 ? four : eight;
                    return scaled(d->runs(kernel, shape, 500), 1.0 / (kUnrolled * chains * warps));
                });
        }
    };
    products("bf16", product_kernel<bfloat16, 1>, product_kernel<bfloat16, 4>, product_kernel<bfloat16, 8>);
    products("tf32", product_kernel<tf32, 1>, product_kernel<tf32, 4>, product_kernel<tf32, 8>);

    // Functions: a chain of one warp, and how many a multiprocessor does in a cycle with 16 warps of 4 chains.
    const auto functions = [&](const std::string& name, Kernel one, Kernel four) {
        add(name + "_latency", "cycles", [=] { return scaled(d->runs(one, shaped(1, 32), 500), 1.0 / kUnrolled); });
        add(name + "_rate", "1/cycle/SM",
            [=] { return over(512.0 * 4 * kUnrolled, d->runs(four, shaped(1, 512), 500)); });
    };
    functions("fma", function_kernel<MultiplyAdd, 1>, function_kernel<MultiplyAdd, 4>);
    functions("ex2", function_kernel<Ex2, 1>, function_kernel<Ex2, 4>);
    functions("tanh_approx", function_kernel<TanhApprox, 1>, function_kernel<TanhApprox, 4>);
    functions("exp", function_kernel<Exp, 1>, function_kernel<Exp, 4>);
    functions("sigmoid", function_kernel<Sigmoid, 1>, function_kernel<Sigmoid, 4>);
    functions("tanh", function_kernel<Tanh, 1>, function_kernel<Tanh, 4>);
    functions("shuffle", function_kernel<Shuffle, 1>, function_kernel<Shuffle, 4>);

    add("launch_gap_stream", "us", [=] { return launch_gaps(*d, false, false, 1); });
    add("launch_gap_graph", "us", [=] { return launch_gaps(*d, true, false, 1); });
    add("launch_gap_graph_cooperative", "us", [=] { return launch_gaps(*d, true, true, 1); });
    for (const int cluster : clusters_up_to({8}))
        add("launch_gap_graph_cluster_" + number(cluster), "us", [=] { return launch_gaps(*d, true, false, cluster); });
    add("sm_clock_last", "MHz", clock);
    return all;
}

// False where it failed. Throws where the device cannot be used any more.
bool measure(const Measurement& one) {
    std::fprintf(stderr, "# %s\n", one.name.c_str());
    std::fflush(stderr);
    std::string why;
    try {
        const std::vector<double> runs = one.runs();
        const auto [least, most] = std::minmax_element(runs.begin(), runs.end());
        std::fprintf(stderr, "#   %zu runs: %.6g to %.6g\n", runs.size(), *least, *most);
        std::printf("%s,%s,%.6g\n", one.name.c_str(), one.unit.c_str(), median(runs));
        std::fflush(stdout);
        return true;
    } catch (const std::exception& error) {
        why = error.what();
    }
    std::fprintf(stderr, "# %s failed: %s\n", one.name.c_str(), why.c_str());
    std::fflush(stderr);
    cudaGetLastError();
    CHECK(cudaDeviceSynchronize());
    return false;
}

int measure_all(const std::vector<std::string>& names) {
    const Device device;
    const std::vector<Measurement> all = measurements(device);
    const auto is_asked = [&](const std::string& name) {
        return names.empty() || std::find(names.begin(), names.end(), name) != names.end();
    };
    for (const std::string& name : names)
        if (std::none_of(all.begin(), all.end(), [&](const Measurement& one) { return one.name == name; })) {
            std::fprintf(stderr, "gpu_floor: no measurement is called %s\n", name.c_str());
            return 2;
        }
    bool good = true;
    for (const Measurement& one : all)
        if (is_asked(one.name)) good &= measure(one);
    return good ? 0 : 1;
}

int list() {
    const Device device;
    for (const Measurement& one : measurements(device)) std::printf("%s,%s\n", one.name.c_str(), one.unit.c_str());
    return 0;
}

}  // namespace

int floor_main(int count, char** arguments) {
    try {
        int devices = 0;
        CHECK(cudaGetDeviceCount(&devices));
        if (count == 2 && !std::strcmp(arguments[1], "list")) return list();
        if (count == 2 && !std::strcmp(arguments[1], "all")) count = 1;
        return measure_all({arguments + 1, arguments + count});
    } catch (const std::exception& error) {
        std::fprintf(stderr, "gpu_floor: %s\n", error.what());
        return 1;
    }
}

}  // namespace vssn::gpu

int main(int count, char** arguments) { return vssn::gpu::floor_main(count, arguments); }
