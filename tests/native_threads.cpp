// The native engine from several threads at once, each with threads of its own: for a thread sanitizer, which Python and
// torch do not run under. The same bits must come out whoever computes; 1 where they do not.
#include "../mmgl_losses/contrast/native/engine.cpp"

using native::Call;

std::vector<float> solve(long n, long features, bool separate, int threads) {
    const long groups = 2, m = n + 50;
    std::vector<float> anchors(groups * n * features), keys(groups * m * features), found;
    for (size_t i = 0; i < anchors.size(); ++i) anchors[i] = float(i * 7919 % 1000) / 4000 - 0.1f;
    for (size_t i = 0; i < keys.size(); ++i) keys[i] = float(i * 104729 % 1000) / 4000 - 0.1f;
    std::vector<int64_t> ids(groups * m), counts(2 * groups * n);
    for (size_t i = 0; i < ids.size(); ++i) ids[i] = i * i % 5;
    std::vector<float> results(3 * groups * n), derivatives(3 * groups * n), loss(1), gradient(groups * n * features);
    std::vector<float> others(keys.size());
    std::vector<double> share(groups);
    Call call = {};
    call.anchors = anchors.data(), call.ids = call.key_ids = ids.data();
    if (separate) call.keys = keys.data();
    for (int k = 0; k < 2; ++k) {
        call.lse[k] = &results[k * groups * n], call.counts[k] = &counts[k * groups * n];
        call.upstream[k] = &derivatives[k * groups * n];
    }
    call.total = &results[2 * groups * n];
    call.groups = groups, call.n = n, call.m = separate ? m : n, call.features = features, call.threads = threads;
    call.anchor_steps[0] = n * features, call.anchor_steps[1] = features, call.anchor_steps[2] = 1;
    call.key_steps[0] = m * features, call.key_steps[1] = features, call.key_steps[2] = 1;
    call.most = 2, call.scale = 2;
    bool failed = mmgl_solve(&call);
    found = results;
    call.share = share.data(), call.loss = loss.data(), call.average = 1, call.weight = 1;
    call.total = &derivatives[2 * groups * n];
    failed |= mmgl_solve(&call);
    call.backward = 1;  // the loss stands for its own gradient
    call.gradient[0] = gradient.data(), call.gradient[1] = separate ? others.data() : nullptr;
    failed |= mmgl_solve(&call);
    if (failed) return {};
    for (auto* part : {&derivatives, &loss, &gradient, &others}) found.insert(found.end(), part->begin(), part->end());
    return found;
}

int main() {
    std::atomic<int> wrong{0};
    std::vector<std::thread> callers;
    for (long n : {100L, 300L, 500L})
        callers.emplace_back([n, &wrong] {
            for (bool separate : {false, true}) {
                const auto alone = solve(n, 64, separate, 1);
                for (int threads : {2, 3, 5}) wrong += alone.empty() || solve(n, 64, separate, threads) != alone;
            }
        });
    for (auto& caller : callers) caller.join();
    return wrong != 0;
}
