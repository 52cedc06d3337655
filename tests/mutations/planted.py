"""Mistakes to plant, one at a time, and the tests that must then fail (`make mutations`).

Each is an edit of one place in one file: a mask dropped, a softmax over the wrong axis, a token with its neighbour's
weight. `old` occurs exactly once in the file.
"""

from __future__ import annotations

from tests.mutations.mistake import Mistake
from tests.mutations.planted_counts import COSTS, COUNTING, DATA
from tests.mutations.planted_statistics import STATISTICS

FAT = ("tests/property/test_fat.py", "tests/reference/test_slow_twins.py::test_fat")
ONETRANS = ("tests/property/test_onetrans.py", "tests/reference/test_slow_onetrans.py::test_onetrans")
LUM = ("tests/property/test_lum.py", "tests/reference/test_slow_lum.py::test_user_model_of_lum")
JOINT = ("tests/unit/test_joint.py",)
DIN = ("tests/property/test_legacy_models.py", "tests/reference/test_peers.py")
JAGGED = ("tests/property/test_din_jagged.py",)
CROSS = (
    "tests/property/test_cross_networks.py",
    "tests/property/test_legacy_models.py",
    "tests/reference/test_peers.py",
)
_BLOCKS, _PAIRS, _FIELDS = "models/field_blocks.py", "kernels/pair_attention.py", "kernels/field_linear.py"
_LAYERS, _MIXED = "models/onetrans_blocks.py", "kernels/mixed_linear.py"
_BACKBONE, _MASKS = "models/lum_backbone.py", "models/lum_masks.py"
_INTEREST, _UNIT = "legacy_baselines/interest.py", "kernels/din_unit.py"
_NODE, _STEPS, _C = "kernels/din_attention.py", "kernels/cpu/first_layer.py", "kernels/cpu/din_blocks.c"
_DCN, _LAYER, _MIXTURE = "legacy_baselines/dcn_v2.py", "kernels/cross.py", "kernels/cross_mixture.py"
SESSIONS = ("tests/property/test_onetrans_sessions.py",)
LOAD = ("tests/unit/test_load.py",)
COST = ("tests/unit/test_cost.py",)
TABLES = ("tests/reference/test_embedding_tables.py",)
_ROWS = "kernels/cpu/table_rows.c"

PLANTED = (
    # ------------------------------------------------------------------ FAT
    Mistake("fat", "softmax over the queries", _PAIRS, "return scores_BHFF.softmax(dim=-1) @ v_BHFd",
            "return scores_BHFF.softmax(dim=-2) @ v_BHFd", FAT),
    Mistake("fat", "pair weights left out", _PAIRS, "* (pair_FF * (1.0 / math.sqrt(q_BHFd.shape[-1])))",
            "* (1.0 / math.sqrt(q_BHFd.shape[-1]))", FAT),
    Mistake("fat", "pair weights of (j, i)", _PAIRS, "* (pair_FF * (1.0", "* (pair_FF.transpose(-1, -2) * (1.0", FAT),
    Mistake("fat", "scores without 1/sqrt(d)", _PAIRS, "(pair_FF * (1.0 / math.sqrt(q_BHFd.shape[-1])))", "pair_FF",
            FAT),
    Mistake("fat", "chosen bases in equal shares", _BLOCKS, "top.values.softmax(dim=-1)",
            "torch.full_like(top.values, 1 / self.chosen)", FAT),
    Mistake("fat", "one router for all projections", _BLOCKS, "compose(share_PFK[i], index_PFK[i], bases_MDE",
            "compose(share_PFK[0], index_PFK[0], bases_MDE", FAT),
    Mistake("fat", "weights of the first field for all", _FIELDS,
            'return (on_gpu("field_linear", x_FBD) or torch.bmm)(x_FBD, weight_FDE)', "return x_FBD @ weight_FDE[0]",
            FAT),
    Mistake("fat", "the residual of the block left out", _BLOCKS,
            "return z_FBD + self._feed(self.norm1(attended_FBD)",
            "return self._feed(self.norm1(attended_FBD)", FAT),
    Mistake("fat", "ReLU for SiLU", _BLOCKS, "apply_weight(silu(apply_weight(x_FBD, weights.up)), weights.down)",
            "apply_weight(apply_weight(x_FBD, weights.up).relu(), weights.down)", FAT),
    Mistake("fat", "mean of the tokens for their sum", _BLOCKS, "z_FBD.sum(dim=0)", "z_FBD.mean(dim=0)", FAT),
    Mistake("fat", "field biases left out", "models/fat.py", "z_FBD = z_FBD + self.bias_SFD[i].unsqueeze(1)", "pass",
            FAT),
    Mistake("fat", "written weights outlive a change of parameters", "models/fat.py",
            "if self._cache is None or self._cache[0] != version:", "if self._cache is None:", FAT),
    # ------------------------------------------------------------- OneTrans
    Mistake("onetrans", "causal mask off by one", _LAYERS, "seen_BII & lower_right(total, total, valid_BS.device)",
            "seen_BII & torch.ones(total, total, dtype=torch.bool, device=valid_BS.device).tril(1)", ONETRANS),
    Mistake("onetrans", "NS-token j with the weight of j + 1", _MIXED, "torch.bmm(n_BND.transpose(0, 1), own_NDE)",
            "torch.bmm(n_BND.transpose(0, 1), own_NDE.roll(1, 0))", ONETRANS),
    Mistake("onetrans", "padding is seen", _LAYERS, "seen_BI = torch.cat([valid_BS, valid_BS.new_ones",
            "seen_BI = torch.cat([torch.ones_like(valid_BS), valid_BS.new_ones", ONETRANS),
    Mistake("onetrans", "the pyramid keeps the oldest", _LAYERS, "s_BSD[:, max(0, s_BSD.shape[1] - self.kept) :]",
            "s_BSD[:, : self.kept]", ONETRANS),
    Mistake("onetrans", "triangle at the upper left of a shorter layer", "kernels/attention.py",
            "device=device).tril(keys - queries)", "device=device).tril()",
            (*ONETRANS, "tests/reference/test_kernels_attention.py")),
    Mistake("onetrans", "norm before attention left out", _LAYERS, "s_BSD, n_BND = self.norm1(s_BSD, n_BND)",
            "s_BSD, n_BND = s_BSD, n_BND", ONETRANS),
    Mistake("onetrans", "residual of the feed-forward part left out", _LAYERS,
            "return _add(s_BQD, s_out), _add(n_BND, n_out)", "return s_out, n_out", ONETRANS),
    Mistake("onetrans", "keys for values", _LAYERS, "k_BHId, v_BHId = kv_BIE", "v_BHId, k_BHId = kv_BIE", ONETRANS),
    Mistake("onetrans", "kept keys of the oldest events", "models/onetrans_serving.py",
            "x.narrow(dim, max(0, x.shape[dim] - count), min(count, x.shape[dim]))",
            "x.narrow(dim, 0, min(count, x.shape[dim]))", SESSIONS),
    Mistake("onetrans", "kept states of other events", "models/onetrans_sessions.py",
            "if same == before == line.size:", "if before == line.size:", SESSIONS),
    Mistake("onetrans", "histories merged newest first", "models/histories.py", "padding), dim=1, stable=True)",
            "padding), dim=1, stable=True, descending=True)", ONETRANS),
    # ------------------------------------------------------- serving, cost
    Mistake("serving", "a queue without a bound", "bench/serving/load.py",
            "if len(self.waiting) < self.limits.max_queue:", "if True:", LOAD),
    Mistake("serving", "latency from the arrival before", "bench/serving/load.py",
            "self.latency_N[i] = now - self.due[i]", "self.latency_N[i] = now - self.due[max(0, i - 1)]", LOAD),
    Mistake("cost", "storage paid once more by training", "bench/cost_terms.py",
            "for t in SAMPLE_TERMS if t != STORAGE", "for t in SAMPLE_TERMS", COST),
    Mistake("cost", "an hour of a month's price", "bench/cost_terms.py",
            "per_month = per_hour / HOURS_A_MONTH", "per_month = per_hour", COST),
    # ------------------------------------------------------------------ LUM
    Mistake("lum", "loss on item positions", _BACKBONE, "self.states(rows, sequences)[:, :: self.per_event]",
            "self.states(rows, sequences)[:, 1 :: self.per_event]", LUM),
    Mistake("lum", "users of a packed row see each other", _MASKS,
            "seen_RNN = same_RNN & lower_right(n, n, segment_RL.device)",
            "seen_RNN = lower_right(n, n, segment_RL.device) & (segment_RN > 0).unsqueeze(1)", LUM),
    Mistake("lum", "tokens see the future", _MASKS, "seen_RNN = same_RNN & lower_right(n, n, segment_RL.device)",
            "seen_RNN = same_RNN", LUM),
    Mistake("lum", "the item before its condition", _BACKBONE, "torch.stack([cond, item], dim=1)",
            "torch.stack([item, cond], dim=1)", LUM),
    Mistake("lum", "without conditions an event predicts itself", _BACKBONE, ".roll(1, dims=1)", "", LUM),
    Mistake("lum", "queries see each other", _MASKS, "blocks = torch.eye(queries, dtype",
            "blocks = torch.ones(queries, queries, dtype", LUM),
    Mistake("lum", "queries see padding", _MASKS, "(segment_BL > 0).repeat_interleave(tokens, dim=1).unsqueeze(1)",
            "(segment_BL >= 0).repeat_interleave(tokens, dim=1).unsqueeze(1)", LUM),
    Mistake("lum", "temperature left out", _BACKBONE, "candidates_Ud, 1 / self.tau)", "candidates_Ud)", LUM),
    Mistake("lum", "frequency correction with the wrong sign", _BACKBONE, "logits_NU = logits_NU - torch.log",
            "logits_NU = logits_NU + torch.log", LUM),
    Mistake("lum", "a query at the place of the last event", _BACKBONE,
            'place_B = 2 * next_B if self.positions == "token"',
            'place_B = 2 * next_B - 1 if self.positions == "token"', LUM),
    Mistake("lum", "a question at a place that no training row has", "models/histories.py", "return max(1, length - 1)",
            "return length", LUM),
    Mistake("lum", "joint loss on a user's oldest row", "models/lum_joint.py", "descending=True",
            "descending=False", JOINT),
    Mistake("lum", "joint loss without its weight", "models/lum_answers.py", "self.config.joint_weight * joint_loss",
            "joint_loss", JOINT),
    Mistake("lum", "the frozen base learns", "models/lum_answers.py",
            "with torch.no_grad() if self.config.frozen else nullcontext():", "with nullcontext():", LUM),
    # ------------------------------------------------------------------ DIN
    Mistake("din", "softmax over the history", _INTEREST,
            "return masked_softmax(a_BT, mask_BT) if self.softmax else a_BT * mask_BT",
            "return masked_softmax(a_BT, mask_BT)", DIN),
    Mistake("din", "padding weighs in", _INTEREST, "if self.softmax else a_BT * mask_BT",
            "if self.softmax else a_BT", DIN),
    Mistake("din", "Dice over padding", _INTEREST, 'if self.training and mask is not None and self.stats == "valid":',
            'if self.training and mask is not None and self.stats == "none":', DIN),
    Mistake("din", "Dice without batch norm", _INTEREST, "torch.sigmoid(scaled)", "torch.sigmoid(x)", DIN),
    Mistake("din", "Dice with its sides exchanged", _INTEREST,
            "torch.addcmul(alpha_O, 1 - alpha_O, torch.sigmoid(scaled))",
            "torch.addcmul(torch.ones_like(alpha_O), alpha_O - 1, torch.sigmoid(scaled))", DIN),
    Mistake("din", "running statistics never learnt", _INTEREST,
            "self.mean_O.lerp_(mean_O.to(self.mean_O.dtype), step)",
            "self.mean_O.lerp_(mean_O.to(self.mean_O.dtype), 0 * step)", DIN),
    Mistake("din", "difference part with the wrong sign", _UNIT, "torch.addcmul((w_h - w_d).t(),",
            "torch.addcmul((w_h + w_d).t(),", DIN),
    Mistake("din", "product part left out", _UNIT, "torch.addcmul((w_h - w_d).t(), q_BC.unsqueeze(2), w_p.t())",
            "(w_h - w_d).t().expand(len(q_BC), -1, -1)", DIN),
    Mistake("din", "the query of a neighbouring field", "models/histories.py", "rows.append(fields_BFD[:, i])",
            "rows.append(fields_BFD[:, i - 1])", DIN),
    Mistake("din", "the oldest events are kept", "models/events.py",
            "index_BT = (offsets_B1[1:].unsqueeze(1) - back_T).clamp(min=0)",
            "index_BT = (offsets_B1[:-1].unsqueeze(1) + length - back_T).clamp(max=int(offsets_B1[-1]) - 1)", DIN),
    Mistake("din", "node: difference part with the wrong sign", _NODE, "w_q + w_d, torch.cat([w_h - w_d, w_p], dim=1)",
            "w_q + w_d, torch.cat([w_h + w_d, w_p], dim=1)", JAGGED),
    Mistake("din", "node: gradient of the difference part", _NODE, "dquery_OC - devent_OC, dproduct_OC]",
            "dquery_OC + devent_OC, dproduct_OC]", JAGGED),
    Mistake("din", "node: mean and variance of Dice taken for constants", _NODE,
            "dx_EO = acts[i].finish(outs[i][k], dx_EO, sums[i], events)", "dx_EO = grads[k]", JAGGED),
    Mistake("din", "node: softmax without its gradient", _NODE, "        da_N *= a_N\n", "", JAGGED),
    Mistake("din", "node: bias by the last block alone", _NODE, "dbs[i] += dx_EO.sum(0)", "dbs[i] = dx_EO.sum(0)",
            JAGGED),
    Mistake("din", "node: variance within blocks only", "kernels/dice.py", "(vars_KO + (means_KO - mean).square())",
            "vars_KO", JAGGED),
    Mistake("din", "steps: event for its product with the query", _STEPS,
            "torch.mul(q_BC.index_select(0, row_E), h_EC, out=pair_E2C[:, width:])", "pair_E2C[:, width:] = h_EC",
            JAGGED),
    Mistake("din", "steps: pooling without its gradient", _STEPS,
            "torch.mul(du_BC.index_select(0, row_E), a_E.unsqueeze(1), out=dh_EC)", "dh_EC.zero_()", JAGGED),
    Mistake("din", "C: the slope of the gate left out", _C, "de[o] * g + s * (rest * scale[o])", "de[o] * g", JAGGED),
    Mistake("din", "C: sum of s z without z", _C, "sz[o] += s * z", "sz[o] += s", JAGGED),
    Mistake("din", "C: the last events of a block left out", _C, "(rows + CHUNK - 1) / CHUNK", "rows / CHUNK", JAGGED),
    Mistake("din", "C: events of the block's first row for all", _C, "pe[width + c] = qe[c] * he[c]",
            "pe[width + c] = q[c] * he[c]", JAGGED),
    Mistake("din", "C: score left out of the gradient of h", _C, "const float ae = a[e];", "const float ae = 1.0f;",
            JAGGED),
    Mistake("din", "C: exponent off by one", _C, "((int32_t)n + 127) << 23", "((int32_t)n + 126) << 23", JAGGED),
    # --------------------------------------------------------------- DCN-v2
    Mistake("dcn_v2", "x_l for x_0 in the product", _LAYER,
            "torch.addcmul(x_BN, x0_BN, linear(x_BN, weight_NN, bias_N))",
            "torch.addcmul(x_BN, x_BN, linear(x_BN, weight_NN, bias_N))", CROSS),
    Mistake("dcn_v2", "residual of x_0", _LAYER, "torch.addcmul(x_BN, x0_BN, linear(x_BN, weight_NN, bias_N))",
            "torch.addcmul(x0_BN, x0_BN, linear(x_BN, weight_NN, bias_N))", CROSS),
    Mistake("dcn_v2", "bias left out", _LAYER, "torch.addcmul(x_BN, x0_BN, linear(x_BN, weight_NN, bias_N))",
            "torch.addcmul(x_BN, x0_BN, linear(x_BN, weight_NN))", CROSS),
    Mistake("dcn_v2", "weight transposed", _LAYER, "torch.addcmul(x_BN, x0_BN, linear(x_BN, weight_NN, bias_N))",
            "torch.addcmul(x_BN, x0_BN, linear(x_BN, weight_NN.t(), bias_N))", CROSS),
    Mistake("dcn_v2", "every layer reads the input", _DCN, "x_BN = cross(x0_BN, x_BN, layer.weight",
            "x_BN = cross(x0_BN, x0_BN, layer.weight", CROSS),
    Mistake("dcn_v2", "gates that do not sum to one", _DCN, "(x_BN).softmax(dim=1)", "(x_BN).sigmoid()", CROSS),
    Mistake("dcn_v2", "gates over the batch", _DCN, "(x_BN).softmax(dim=1)", "(x_BN).softmax(dim=0)", CROSS),
    Mistake("dcn_v2", "the parallel MLP reads the cross output", _DCN,
            'out_BM = torch.cat([crossed_BN, self.mlps["parallel"](x0_BN)], dim=1)',
            'out_BM = torch.cat([crossed_BN, self.mlps["parallel"](crossed_BN)], dim=1)', CROSS),
    Mistake("dcn_v2", "experts' inner matrix transposed", _MIXTURE, "torch.bmm(z_KBR, c_KRR.transpose(1, 2))",
            "torch.bmm(z_KBR, c_KRR)", CROSS),
    Mistake("dcn_v2", "gates after the product of all experts", _MIXTURE,
            "z_KBR.transpose(0, 1) * gate_BK.unsqueeze(-1)",
            "z_KBR.transpose(0, 1) * gate_BK.mean(dim=1)[:, None, None]", CROSS),
    # --------------------------------------------------------------- tables
    Mistake("tables", "gradients of a repeated id: the last one alone", _ROWS, "sum[j] += more[j]", "sum[j] = more[j]",
            TABLES),
    Mistake("tables", "sum of squares for their mean", _ROWS, "square / width", "square", TABLES),
    Mistake("tables", "step by the state before it", _ROWS, "state[row] += square / width;\n", "", TABLES),
    Mistake("tables", "by element: the first column's state for all", _ROWS, "(sqrtf(own_state[j]) + eps)",
            "(sqrtf(own_state[0]) + eps)", TABLES),
    Mistake("tables", "bag by bag for feature by feature", _ROWS, "place[n] = (uint32_t)(b * features + f)",
            "place[n] = (uint32_t)(f * batch + b)", TABLES),
    Mistake("tables", "every row moved by every thread", _ROWS, "if (owner(row, all) == me) items[count++]",
            "if (count < own) items[count++]", TABLES),
    Mistake("tables", "sorted by the low bits alone", _ROWS, "shift < 32 && (highest >> shift)",
            "shift < DIGIT && (highest >> shift)", TABLES),
    Mistake("tables", "an id outside its table is read", _ROWS, "(uint64_t)ids[n] >= (uint64_t)rows[f]", "0", TABLES),
    *STATISTICS, *COUNTING, *COSTS, *DATA,
)  # fmt: skip
