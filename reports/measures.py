# ruff: noqa: E501 - the catalogue is a table; one measure a line
"""The catalogue of measures: each declared once; console, columns, axis labels and docs read the declaration.

Those of test scores may stand in a file of their own (`MEASURE`, see CONTRIBUTING.md) instead of the table.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from ctrbench.reports.declared import Better, Measure, Style, modules_with
from ctrbench.reports.records import Measurement, Origin, Status


def _table(*rows: tuple[str, str, str, Better, Style, str, str]) -> Mapping[str, Measure]:
    listed = [Measure(id=r[0], title=r[1], unit=r[2], better=r[3], style=r[4], words=r[5], source=r[6]) for r in rows]
    found: list[Measure] = [module.MEASURE for module in modules_with("MEASURE")]
    declared: dict[str, Measure] = {}
    for m in (*listed, *found):
        if m.id in declared:
            raise ValueError(f"measure {m.id} is declared twice in reports/: give one of them another id")
        declared[m.id] = m
    return MappingProxyType(declared)


_TAG = "operator dispatch of a counting process"
_CLOCK = "wall clock of a process without tracer or counter"
_CALLS = "operating system (getrusage, /proc)"
_FILES = "file system"
_SCORES = "scores of the whole test split"
_ROOF = "Williams et al. 2009 (roofline)"
_MFU = "Chowdhery et al. 2022 (MFU)"
_CEIL = "this machine, measured in alternation with the runs"
_SHEET = "vendor datasheet, dense peak"

MEASURES: Mapping[str, Measure] = _table(  # a row a measure, all of one form
    # time
    ("step_time", "Step time", "s", "down", "time", "wall time of one training step at steady state: median over processes of the per-process P50", _CLOCK),
    ("throughput", "Throughput", "samples/s", "up", "si", "real samples / step wall time", _CLOCK),
    ("infer_latency", "Forward latency", "s", "down", "time", "wall time of one forward call at the batch stated, P50", _CLOCK),
    ("loader_stall", "Loader stall", "ratio", "down", "percent", "time a step waits for data / step wall time", _CLOCK),
    ("split_host", "Step split (host)", "1", "none", "percent", "exclusive wall time of a stage or block / wall time of the traced step; what no stage covers is `other`", "NVTX ranges in a separate traced process"),
    ("split_bytes", "Step split (bytes)", "1", "none", "percent", "operand bytes of the blocks of a stage, with their backward and the optimizer of what they hold / operand bytes of the training step", _TAG),
    ("split_component", "Step split (two ways)", "1", "none", "percent", "share of a training step that a component takes, blocks with their backward; scope `ranges:x`: exclusive time of its ranges in a traced process; scope `left_out:x`: 1 - step without it / whole step, medians of steps by turns without a tracer; unstable where they are more than ten points of the step and the interval apart, or the interval is wider than twenty", "NVTX ranges, and a clock without them"),
    ("mode_time", "Step over eager float32", "ratio", "down", "number", "step time in this mode / that of the same model eager in float32, by turns in one process on the same batches: median of the ratios within rounds with its bootstrap interval", _CLOCK),
    ("compile_time", "Compilation", "s", "down", "time", "seconds that the first training steps of a process take beyond steady ones: forward, backward and what is compiled again for other shapes; scope `cold` with an empty cache of Inductor, `warm` once more in the same process from its files", _CLOCK),
    ("recompiles", "Recompilations", "compilations", "down", "count", "frames that Dynamo compiled again because a guard failed, in warm-up and timed steps", "torch._dynamo compilation metrics"),
    ("graph_breaks", "Graph breaks", "breaks", "down", "count", "places where Dynamo left the graph, the lookups of embeddings among them", "torch._dynamo counters"),
    ("attention_time", "Attention over math", "ratio", "down", "number", "time of forward and backward of one attention of the shape stated through a back end of scaled_dot_product_attention / that of the math back end, by turns in one process; scope is the back end", _CLOCK),
    ("cpu_core_seconds", "CPU core-seconds", "core*s", "down", "number", "user + system time of the process and its children, per training step", _CALLS),
    ("cpu_core_s_per_million", "CPU core-s / million samples", "core*s", "down", "number", "CPU core-seconds per million samples; data path and compute apart (`scope`)", _CALLS),
    ("train_seconds", "Training time", "s", "down", "time", "wall time of training to the row budget, with validation", _CLOCK),
    ("load_rate", "Loading rate", "samples/s", "up", "si", "rows that the loader makes into batches in the calling thread / wall time of a pass; scope `loader:way:batch N`, way `parquet` a first pass that reads and decodes the shards, `memory` a later one over the window in memory", _CLOCK),
    ("load_bytes", "Loading bandwidth", "B/s", "up", "bytes", "bytes of the batches / wall time of a pass, scopes as load_rate; way `shards`: bytes of the shards and event logs of the pass that reads them / its wall time", _CLOCK),
    ("path_time", "Time of a way", "s", "down", "time", "wall time of one pass, step or call of a way of doing a part of the data path, median over rounds in which the ways take turns; scope `part:way:place`", _CLOCK),
    ("path_ratio", "Times the first way", "ratio", "none", "number", "time of a way / time of the part's first way in the same round, median over rounds with a bootstrap interval; scope as path_time; one with 1 in it is a tie", _CLOCK),
    ("path_bytes", "Bytes touched", "B", "down", "bytes", "bytes that a way reads and writes if every array is touched once, from the ids of the batch; scope as path_time", "array sizes (bench/datapath/dedup.py)"),
    # counts
    ("ops_per_step", "Operators / step", "ops", "down", "count", "non-view operators dispatched in one steady step: forward + backward + optimizer", _TAG),
    ("ops_per_sample", "Operators / sample", "ops", "down", "number", "operators per step / real samples", _TAG),
    ("kernels_per_step", "CUDA kernels / step", "launches/step", "down", "count", "kernels that the executed operators launch on a GPU; without a recording modelled from the operator table, with a band", "kernel rows of a recording, else the operator-to-kernel table"),
    ("kernels_per_sample", "CUDA kernels / sample", "launches/sample", "down", "number", "kernels per step / real samples", "as kernels_per_step"),
    ("flops_fwd_per_sample", "Forward FLOPs / sample", "FLOP/sample", "none", "si", "model FLOPs of one forward pass / real samples; 2 per multiply-add; elementwise work, padding and masked pairs excluded", _TAG),
    ("flops_train_per_sample", "Training FLOPs / sample", "FLOP/sample", "none", "si", "model FLOPs of forward + backward / real samples; padding, masked pairs and recompute excluded", _TAG),
    ("flops_elementwise", "Elementwise FLOPs", "FLOP", "none", "si", "1 per element and operation of norms, activations and products in one step; never enters a utilisation", _TAG),
    ("flop_coverage", "FLOP coverage", "ratio", "up", "percent", "share of operators that could carry FLOPs for which a formula exists; below the threshold every utilisation is withheld", _TAG),
    ("launches_recorded", "Launches / step", "launches/step", "down", "count", "kernels of a traced step by launch correlation; on a CPU the dispatched operators that work and hold no other that works", "kernel or operator rows of a recording"),
    ("kernel_size_hist", "Share of launches by duration", "ratio", "none", "percent", "launches, or their time, of at most the stated duration / all", "kernel or operator rows of a recording"),
    ("launch_time", "Time in launches", "s", "down", "time", "time of kernels, or of operators without what runs inside them, per traced step; of Nsight Compute the sum over the launches it replayed", "kernel or operator rows of a recording"),
    ("block_flop_rate", "Achieved FLOP/s", "FLOP/s", "up", "si", "executed FLOPs of a block / its time: on a CPU its share of the traced step x the step time of the timed process, on a GPU the kernel time of the same counters", _ROOF),
    ("flops_per_kernel", "FLOPs / kernel", "FLOP/launch", "up", "si", "training FLOPs of one step / kernels of one step", "counted FLOPs over modelled kernels"),
    # bytes and intensity
    ("bytes_operands", "Operand bytes / step", "B", "down", "bytes", "sum over non-view operators of distinct input and output storages: no fusion, no cache (an upper estimate, not a bound)", _TAG),
    ("bytes_compulsory", "Compulsory bytes / step", "B", "down", "bytes", "unique bytes that must cross DRAM once in the phase: inputs, parameters, unique table rows, outputs", _TAG),
    ("ai_operands", "Intensity (operands)", "FLOP/B", "none", "number", "executed FLOPs / operand bytes", _ROOF),
    ("ai_compulsory", "Intensity (compulsory)", "FLOP/B", "none", "number", "executed FLOPs / compulsory bytes: the upper limit of intensity", _ROOF),
    ("useful_flop_share", "Useful share of FLOPs", "ratio", "up", "percent", "model FLOPs / executed FLOPs of a training step: the rest is padding, masked pairs and idle products; a step executed like this cannot reach a higher MFU", _TAG),
    ("padding_waste", "Padding waste", "ratio", "down", "percent", "1 - real tokens / processed tokens", _TAG),
    ("unique_row_ratio", "Unique row ratio", "ratio", "none", "percent", "unique (table, row) pairs / lookups of a batch", _TAG),
    # utilisation
    ("mfu", "MFU", "ratio", "up", "percent", "model FLOPs / (step time x dense peak of the dtype); on this page only as cited by others", _MFU),
    ("mfu_cpu", "MFU on this CPU", "ratio", "up", "percent", "model FLOPs / (step time x this CPU's measured GEMM ceiling at the same dtype and threads)", _MFU),
    ("hfu_cpu", "HFU on this CPU", "ratio", "up", "percent", "executed FLOPs / (step time x this CPU's measured GEMM ceiling): MFU / useful share of FLOPs of the same configuration; padding and masked pairs count as work", _MFU),
    ("mbu", "Bandwidth use", "ratio", "up", "percent", "bytes of a step / (step time x this CPU's measured copy bandwidth); the byte figure is named", _ROOF),
    ("mfu_bound", "MFU bound", "ratio", "up", "percent", "upper bound of MFU on a catalogued GPU: min(1, FLOPs / (uncachable bytes x ridge), FLOPs / (kernels no fusion removes x shortest kernel x dense peak)); errs on the high side, is not an estimate", "counts x datasheet peaks"),
    ("break_even_host_us", "Break-even host time", "us", "up", "number", "modelled GPU time of a step / its launches: on a host slower than this per operator the model is launch-bound", "kernel-time model x kernel count, both bands at their worst"),
    ("gpu_time_modelled", "GPU time (modelled)", "s", "down", "time", "sum over the operator calls of a step of max(FLOPs / (e_c x dense peak), operand bytes / (e_m x DRAM bandwidth)) + c, with parameters of the device at the dtype stated; an interval [t/2, 2t], no basis of a utilisation; n is the number of shapes behind the weakest family", "kernel-time model fitted on recordings"),
    ("gpu_time_bound", "GPU time (lower bound)", "s", "down", "time", "modelled, unfitted: time that the eager operators of a step cannot beat on one stream, from the dense peak, the DRAM bandwidth and the shortest kernel", "counts x datasheet peaks"),
    # serving: `scope` is the form (`reuse`, `whole`, `alone`, or one of the model's own), `batch` the candidates of a request
    ("serve_latency", "Latency of a request", "s", "down", "time", "single stream: wall time from a request, the next one sent when the last is answered, to its scores; feature lookups outside the model are not in it; p99 from 1,000 requests on, p99.9 from 10,000", _CLOCK),
    ("serve_qps", "QPS within the budget", "requests/s", "up", "si", "server: highest rate of Poisson arrivals, found by bisection, whose p99 from the scheduled arrival to the scores stays within the budget that the record states; modelled where 1,000 requests at that rate take longer than the search may: then on a virtual clock, one at a time, with service times that were measured alone", _CLOCK),
    ("serve_offline", "Offline rate", "requests/s", "up", "si", "offline: requests that are all there at the start / wall time until the last is answered", _CLOCK),
    ("serve_refused", "Refused at overload", "ratio", "down", "percent", "requests refused by the bounded queue or because their budget was spent before they were begun / requests sent, at three times the offline rate", _CLOCK),
    ("serve_overload_p99", "p99 at overload", "s", "down", "time", "p99 of the answered requests at three times the offline rate", _CLOCK),
    ("reuse_time", "Time over unshared", "ratio", "down", "number", "wall time of a request served in a form / that of `whole`, in alternation in one process: median of the ratios with an interval over them", _CLOCK),
    ("reuse_over_flops", "Time / predicted", "ratio", "down", "number", "reuse_time / reuse_flops: 1 where sharing saves as much time as FLOPs", _CLOCK),
    ("reuse_flops", "FLOPs over unshared", "ratio", "down", "number", "executed FLOPs of a request served in a form / those of `whole`: what sharing saves if nothing but FLOPs counted", _TAG),
    ("flops_request", "FLOPs / request", "FLOP/request", "none", "si", "executed FLOPs of one request, user's side and all candidates; scope `form:user` is the part that is there once a request whatever its candidates", _TAG),
    ("flops_candidate", "FLOPs / candidate", "FLOP/candidate", "none", "si", "executed FLOPs of one request / its candidates", _TAG),
    ("bytes_request", "Operand bytes / request", "B", "down", "bytes", "operand bytes of one request, as bytes_operands", _TAG),
    ("ops_request", "Operators / request", "ops", "down", "count", "non-view operators dispatched for one request", _TAG),
    ("serve_mfu_cpu", "Serving MFU on this CPU", "ratio", "up", "percent", "executed FLOPs of a request / (its median latency x this CPU's measured GEMM ceiling); padding and masked pairs count as work", _MFU),
    ("gpu_request_time", "GPU time of a request (modelled)", "s", "down", "time", "as gpu_time_modelled, of the operators of one request; scope `form:GPU`", "kernel-time model fitted on recordings"),
    ("tflop_candidates", "Candidates for 1 TFLOP", "candidates", "none", "si", "(1e12 - FLOPs of the user's side) / FLOPs of one more candidate, of a published size; scope `form:history`", _TAG),
    ("serve_cpu", "CPU core-s / request", "core*s", "down", "number", "user + system time of the process while it serves requests one after the other / requests", _CALLS),
    ("bytes_wire", "Bytes on the wire / request", "B", "down", "bytes", "bytes that arrive with a request (user's side and candidates' fields) and of its scores", _TAG),
    ("bytes_knowledge", "Stored answers / user", "B", "down", "bytes", "bytes of answers that LUM keeps of one user", _TAG),
    ("bytes_user_cache", "Cache / user", "B", "down", "bytes", "bytes of keys and values that serving keeps of one user between requests", _TAG),
    ("cache_hit_rate", "Hit rate of the cache", "ratio", "up", "percent", "requests whose user was found / requests, in a stream of users as popular as in the data, under the memory budget that the scope names", _TAG),
    ("stream_drift", "Drift of streaming", "1", "down", "number", "root mean square of (logit on kept states - logit of a cold computation); scope is the events appended since the states were cold", _SCORES),
    ("stream_drift_auc", "ΔAUC of streaming", "ratio", "none", "auc", "test AUC on kept states less that of cold computations on the same rows; users resampled; scope as stream_drift", _SCORES),
    ("stages_diff", "Score difference, shared cache", "1", "down", "number", "largest |difference| between scores of retrieval or ranking served one after the other on one user-side cache and each computed alone; scope is the stage", _SCORES),
    ("stages_saved", "Saved by a shared cache", "ratio", "up", "percent", "1 - what two stages on one user-side cache need / what they need apart; scope `flops` or `bytes`", _TAG),
    ("feature_cpu", "CPU of the feature path", "core*s", "down", "number", "user + system time a million samples, or a million candidates of requests, spent on one step of the feature path, from raw ids and tables in memory to the KeyedJaggedTensor; scope `paradigm:step` or `paradigm:total`; `legacy` makes 40 columns by hand, `legacy_200` 200; step `update` is a million events that counters or histories take in, a mean, and in no total; reading, network and feature store are not in it", _CALLS),
    # cost: a total with a term that is not known is not known; deployments are `cpu` and the names of GPUs, terms `accelerator`, `host_cpu`, `feature_cpu`, `dram`, `storage`, `network`, of requests `training` too, and `total`
    ("usd_per_million_requests", "USD / million requests", "USD", "down", "number", "prices x what a million requests occupy at the planned traffic: accelerator, CPU of the host and of the feature path, memory, storage, network, their share of training; scope `form/deployment:term`; the band holds the low and the high ends of the prices and of a modelled time", "prices.toml"),
    ("usd_per_million_samples", "USD / million training samples", "USD", "down", "number", "prices x what a million training samples occupy; scope `deployment:term`; band as usd_per_million_requests", "prices.toml"),
    # over processes
    ("communication_share", "Share of a step in collectives", "ratio", "down", "percent", "wall time of traced steps in which a collective is under way on the first process / their wall time; overlapped or not", "torch.profiler"),
    # many accelerators, on paper: `scope` is `GPU:accelerators:plan`, the plan `row_wise`, `table_wise` or `small_replicated`; values are middles of their bands
    ("communication_bytes", "Bytes to others / step", "B", "down", "bytes", "bytes of a training step through the busiest accelerator in its busier direction: lengths, ids, rows and their gradients to and from where tables are, and 2 (W - 1) / W of the dense gradients; batch is one accelerator's", "counts x sharding plan (docs/at_scale.md)"),
    ("communication_time", "Communication / step", "s", "down", "time", "bytes over stated link rates at 90 % (low) or 50 % (high) of them, and latencies; nothing measured", "counts x link rates of bench/hardware.toml"),
    ("step_time_at_scale", "Step on many accelerators", "s", "down", "time", "low: max(compute, communication), all hidden that can be; high: compute + communication; compute is gpu_time_modelled with its band, withheld with it", "kernel-time model + communication_time"),
    ("communication_wait_share", "Share waiting for communication", "ratio", "down", "percent", "part of a step that communication adds to compute: low with fast links beside slow compute and all hidden that can be, high the other way round and nothing hidden; where only a lower bound of compute is known the low end is 0", "kernel-time model + communication_time"),
    ("mfu_bound_at_scale", "MFU bound on many accelerators", "ratio", "up", "percent", "min(mfu_bound, FLOPs / (dense peak x time that communication takes at full link rates without latency)) for whole fp32 rows; scope `GPU:accelerators`", "counts x link rates of bench/hardware.toml"),
    # memory and storage
    ("rss_peak", "Peak RSS", "B", "down", "bytes", "largest resident set of the process, one process per configuration", _CALLS),
    ("bytes_raw", "Raw data", "B", "down", "bytes", "input files as found", _FILES),
    ("bytes_shards", "Prepared shards", "B", "down", "bytes", "Parquet shards and manifest written by `prepare`", _FILES),
    ("bytes_tables", "Embedding tables", "B", "down", "bytes", "sum over tables of rows x width x bytes per element", _TAG),
    ("bytes_optimizer", "Optimizer state", "B", "down", "bytes", "state tensors of all optimizers", _TAG),
    ("bytes_checkpoint", "Checkpoint", "B", "down", "bytes", "files written for one checkpoint", _FILES),
    ("parameters", "Parameters", "parameters", "none", "si", "trainable elements; scope `dense` and `tables` apart where given", _TAG),
    # shares of cost
    ("usd_accelerator_share", "Accelerators / total", "ratio", "none", "percent", "USD of accelerators (of serving, and of their part of the share of training) / USD of a million requests; the band is the box of prices and modelled times: accelerators low and all else high, and the other way round", "prices.toml"),
    ("usd_half_factor", "Accelerators half at", "ratio", "none", "number", "(USD of a million requests - USD of accelerators) / USD of accelerators: by what the accelerator's price is multiplied to be half of the total", "prices.toml"),
    # quality
    ("auc", "AUC", "ratio", "up", "auc", "probability that a positive outranks a negative over the whole test split, ties half", _SCORES),
    ("auc_shuffled", "AUC, labels shuffled", "ratio", "none", "auc", "AUC on the true test labels of a model trained, and stopped, on shuffled labels: mean over shuffles with a 99 % t interval by their own spread; an interval without .5 is a doubt about data or code", _SCORES),
    ("auc_ids_only", "AUC, target ids alone", "ratio", "none", "auc", "AUC of a model trained on true labels with the target's categorical fields and nothing else; where negatives are sampled it must lie within .45 and .60", _SCORES),
    ("valid_auc", "Validation AUC", "ratio", "up", "auc", "AUC of the validation rows at the best look of one tuning trial; chooses the trial, enters no comparison", "scores of the validation rows"),
    ("gauc", "GAUC", "ratio", "up", "auc", "AUC per user weighted by impressions; users of one class dropped", "Zhou et al. 2018 (DIN)"),
    ("gauc_dropped", "Users without GAUC", "ratio", "none", "percent", "share of the test split's users all of whose rows have one label: GAUC leaves them out", "labels of the test rows"),
    ("logloss", "Log loss", "nat", "down", "auc", "mean cross-entropy", _SCORES),
    ("scaling_exponent", "Exponent of the power law", "1", "none", "number", "c of log loss = a + b C^-c, least squares over the means of several sizes; band: 95 % of curves drawn with the seeds' spread around the fit", "trainings at several sizes"),
    ("scaling_slope", "Change of loss at ten times", "1", "down", "auc", "slope of the least-squares line of log loss or 1 - AUC against log10 of training FLOPs, rows or history length, one line a seed; mean over seeds with Student's 95 % interval", "trainings at several sizes"),
    ("ne", "Normalised entropy", "ratio", "down", "auc", "log loss / cross-entropy of the constant train positive rate", "He et al. 2014"),
    ("calibration", "Calibration", "ratio", "none", "auc", "mean prediction / observed rate; ideal 1; scope `bin:k/n`: of the k-th of n bins of equally many test rows by score, lowest first", _SCORES),
    ("recall_at_k", "Recall@10", "ratio", "up", "auc", "share of users whose held-out event is among the 10 best of the full catalogue, seen items left out of every list; the last train event for LUM's step 1, the last event of all for preset retrieval; scope `model` is what was trained (LUM is asked with the event's condition), `popularity` and `item_knn` (cosine of the users two items share, 200 neighbours) ignore the condition, `popularity_in_condition` and `item_knn_in_condition` list the condition's items first", "scores of the full catalogue"),
    ("recall_gain", "Recall@10 over a floor", "ratio", "up", "auc", "Recall@10 of the model less the floor's on the same users; interval by Student's t over users for one seed, over users and seeds resampled jointly for several; one with 0 in it is a tie", "scores of the full catalogue"),
    ("ndcg_at_k", "NDCG@10", "ratio", "up", "auc", "1 / log2(rank + 1) of the held-out event if it is among the 10 best of the full catalogue, mean over users; scopes as recall_at_k", "scores of the full catalogue"),
    ("probe_accuracy", "Probe accuracy", "ratio", "up", "auc", "share of held-out users whose attribute, or whose held-out event's category, a logistic regression names; scope `attribute:embedding` reads the frozen user embedding, `attribute:counts` the shares of categories in the history and the newest one, `attribute:majority` nothing; interval: bootstrap over users", "bench/probe.py"),
    ("probe_auc", "Probe AUC, macro", "ratio", "up", "auc", "mean over the classes of the AUC of one class against the rest on held-out users; scopes and interval as probe_accuracy", "bench/probe.py"),
    ("probe_gain", "Probe: embedding over counts", "ratio", "up", "auc", "accuracy or macro AUC of the embedding's head less that of the counts' head, paired over the held-out users; an interval with 0 in it is a tie", "bench/probe.py"),
    ("recall_after", "Recall@10 after training", "ratio", "up", "auc", "share of test users whose last test event is among the 10 best of the full catalogue, asked with its condition, seen items left out, by the user model as the ranker's training left it; nothing was trained on that event", "scores of the full catalogue"),
    ("joint_gain", "Over separate", "ratio", "up", "auc", "scope `auc`: test AUC, scope `recall`: recall_after, of a ranker that trains its user model less that of the same ranker on a frozen one, same rows and seeds; users and seeds resampled jointly; an interval with 0 in it is a tie", _SCORES),
    ("option_delta", "ΔAUC of an option", "ratio", "up", "auc", "test AUC of a variant less that of the nearest variant of the same model, whose options are a part of its own, on the same rows and seeds; users and seeds resampled jointly; an interval with 0 in it is a tie", _SCORES),
    ("pair_weight", "Pair weight", "1", "none", "auc", "learned factor on the attention score of a query field with a key field, before the softmax; mean over heads and seeds; it starts at 1 (or 0) + N(0, .01)", "weights of a training"),
    ("pair_stability", "Rank correlation of pair weights", "1", "up", "auc", "Spearman's correlation of the off-diagonal pair weights of two seeds, mean over the pairs of seeds; the band is the lowest and the highest pair", "weights of trainings"),
    ("budget_flops", "Training FLOPs, whole run", "FLOP", "none", "si", "model FLOPs of every training step of one run; scope `step1` is LUM's pre-training (closed form x 3), `step3` the ranker (counted FLOPs a sample x rows seen), without scope their sum", "counts x rows seen"),
    ("auc_delta", "ΔAUC (paired)", "ratio", "up", "auc", "difference of AUC on the same rows and seeds; users and seeds resampled jointly; an interval with 0 in it is a tie", _SCORES),
    ("auc_pair", "ΔAUC (every pair)", "ratio", "up", "auc", "test AUC of one model less that of another of the same kind (defaults, tuned, equal FLOPs), same rows and seeds; scope `vs:` names the other; users and seeds resampled jointly; an interval with 0 in it is a tie; many pairs at 95 % hold false ones", _SCORES),
    ("auc_pair_mdd", "Detectable ΔAUC (every pair)", "ratio", "down", "auc", "as auc_mdd, of the pair that the scope names", _SCORES),
    ("auc_mdd", "Detectable ΔAUC", "ratio", "down", "auc", "smallest true difference that this design finds with 80 % power at 5 % two-sided error: 2.80 standard errors of the paired difference", _SCORES),
    ("auc_vs_published", "AUC against published", "sd", "none", "number", "(mean AUC over the seeds - published mean of five seeds) / their standard deviation; inside the band up to 3 on either side", "trainings and reports/cited.toml"),
    ("auc_per_gflop", "ΔAUC / extra GFLOP", "1/GFLOP", "up", "number", "paired ΔAUC / extra forward GFLOPs per sample against the same baseline", "paired runs and counts"),
    ("train_rows", "Training rows", "rows", "none", "count", "rows that training may read per epoch", "run specification"),
    ("rows_seen", "Rows seen", "rows", "none", "count", "rows read until training stopped", "training log"),
    # machine and catalogue
    ("ceiling_gemm", "GEMM ceiling", "GFLOP/s", "up", "number", "fastest large matrix product of this CPU at the dtype and threads stated", _CEIL),
    ("ceiling_copy", "Copy bandwidth", "GB/s", "up", "number", "read + write bytes of a large copy / time", _CEIL),
    ("ceiling_cache", "Copy bandwidth in cache", "GB/s", "up", "number", "read + write bytes / time of a copy within the last-level cache (both arrays together a quarter of it, at most 8 MiB)", _CEIL),
    ("dispatch_us", "Operator dispatch", "us", "down", "number", "host time of one trivial operator", _CEIL),
    ("peak_tflops", "Dense peak", "TFLOP/s", "up", "number", "dense peak of a catalogued GPU at the dtype stated", _SHEET),
    ("peak_gbs", "DRAM peak", "GB/s", "up", "number", "peak DRAM bandwidth of a catalogued GPU", _SHEET),
    ("ridge", "Ridge", "FLOP/B", "none", "number", "dense peak / DRAM bandwidth: intensity below which bandwidth is the limit", _ROOF),
)  # fmt: skip

OF_SCORES: tuple[Measure, ...] = tuple(m for m in MEASURES.values() if m.of_scores is not None)
"""Those that are computed from kept test scores because their declaration says how."""


def measure(metric: str) -> Measure:
    """The declaration of a measure.

    Raises:
        KeyError: naming the nearest declared measures.
    """
    if metric not in MEASURES:
        near = difflib.get_close_matches(metric, MEASURES, n=3, cutoff=0.4)
        hint = f"; nearest: {', '.join(near)}" if near else ""
        raise KeyError(f"measure {metric!r} is not declared in reports/measures.py{hint}")
    return MEASURES[metric]


def make(base: Mapping[str, Any], metric: str, value: float, origin: Origin, **kw: Any) -> Measurement:
    """A row with a value; unit and direction come from the catalogue.

    Args:
        base: the identifying columns (`run, model, data, track, phase, ...`).
        metric: id of a declared measure.
        value: the number, in the declared unit.
        origin: how it is known.
        **kw: further columns (`scope`, `n`, `ci_low`, ...); they win over `base`.

    Raises:
        KeyError: if the measure is not declared.
    """
    m = measure(metric)
    columns: dict[str, Any] = {"unit": m.unit, "better": m.better, **base, **kw}
    return Measurement(metric=metric, value=float(value), origin=origin, **columns)


def withheld(base: Mapping[str, Any], metric: str, reason: str, status: Status = "skipped", **kw: Any) -> Measurement:
    """A row that says why there is no number.

    Raises:
        KeyError: if the measure is not declared.
    """
    m = measure(metric)
    columns: dict[str, Any] = {"unit": m.unit, "better": m.better, **base, **kw}
    return Measurement(metric=metric, value=None, origin="abstained", status=status, reason=reason, **columns)
