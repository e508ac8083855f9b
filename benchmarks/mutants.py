"""The mutants: for a file and the laws that hold it, by name the text that is there and the one that breaks it."""

__all__ = ["MUTANTS"]

MUTANTS: dict[tuple[str, str], dict[str, tuple[str, str]]] = {
    ("logdet.py", "test_logdet.py"): {
        "surrogate of the wrong sign": ("value + surrogate - surrogate", "value - surrogate + surrogate"),
        "surrogate left in the value": (
            "return value + surrogate - surrogate.detach()",
            "return value + surrogate",
        ),
        "no gradient at all": (
            "return value + surrogate - surrogate.detach()",
            "return value + 0 * surrogate",
        ),
        "sum over probes": (
            "_with_gradient(jacobian, *probe) for probe in probes]).mean(0)",
            "_with_gradient(jacobian, *probe) for probe in probes]).sum(0)",
        ),
        "error of one probe": ("spread / math.sqrt(self.n_probes)", "spread"),
        "log det of J": (
            "_log_abs_det(identity + dense)",
            "_log_abs_det(dense)",
        ),
        "w forgotten": ("_Surrogate.apply(image, w,", "_Surrogate.apply(image, v,"),
    },
    ("logdet.py", "test_derivatives.py"): {
        "w does not change": (
            "        if torch.is_grad_enabled():\n            w = _differentiable",
            "        if False:\n            w = _differentiable",
        ),
        "slogdet in forward mode": ("if forward_ad._current_level < 0:", "if True:"),
        "derivatives of the probes' values": ("lambda q: vjp(q).detach()", "lambda q: vjp(q)"),
    },
    ("implicit.py", "test_derivatives.py"): {
        "not transposed": ("u = solve(products[transposed],", "u = solve(products[0],"),
        "solutions without derivatives": (
            "return implicit(linear(u, b, value, *inputs)[0], u, linear, solve, b, value, *inputs)",
            "return u",
        ),
        "forward over forward": ("for level in levels or ()) > 1:", "for level in levels or ()) > 9:"),
        "size of the upstream lost": ("return solution.value * size", "return solution.value"),
        "wrong sign of the implicit gradient": (
            "return (unit - product(whole))[active]",
            "return (unit + product(whole))[active]",
        ),
    },
    ("probes.py", "test_logdet.py"): {
        "probes of variance 4": (".mul_(2).sub_(1)", ".mul_(4).sub_(2)"),
        "probes of one sign": ("bernoulli_(0.5,", "bernoulli_(1.0,"),
        "rows of a wrong matrix": ("return x & 1\n", "return (x > 0).long()\n"),
        "a chess board of two rows": ("(h >> b) + (w >> b)", "(h >> b)"),
    },
    ("krylov.py", "test_logdet.py"): {
        "residual of the wrong sign": ("(projected - y[:, -1:]", "(projected + y[:, -1:]"),
        "residual forgotten": ("(projected - y[:, -1:] * self.left)", "projected"),
        "quadrature without the end of its substitution": ("1 - u.square(), u * torch", "1 - u.square(), torch"),
        "not orthogonalized": (
            "h, r = _project_out(basis, r)\n        correction",
            "h, _ = _project_out(basis, r)\n        correction",
        ),
        "the inverse at t = 1/2": ("_NODES.new_ones(1)", "0.5 * _NODES.new_ones(1)"),
        "length not squared": ("self.length.square() * (self.H", "self.length * (self.H"),
        "closed spaces not noticed": (
            "closed = length <= 10 * torch.finfo(r.dtype).eps * size",
            "closed = length < -size",
        ),
        "no bias reported": (
            "return (self._small(self.steps)[0] - before).abs()",
            "return torch.zeros_like(self.length)",
        ),
        "tolerance of the easiest": ("(self.last_change() <= tol).all()", "(self.last_change() <= tol).any()"),
    },
    ("series.py", "test_logdet.py"): {
        "wrong sign": ("term = -vjp(term)", "term = vjp(term)"),
        "a term too few": ("[1.0] * self.n_terms)", "[1.0] * (self.n_terms - 1))"),
        "not divided by k": ("weight * (term * v).sum(1) / k", "weight * (term * v).sum(1)"),
        "gradient without its first term": ("w = w + weight * term  #", "w = w + (k > 1) * weight * term  #"),
        "tail without its logarithm": ("(-math.log1p(-lipschitz) - kept)", "kept"),
        "roulette without weights": ("[1 / chance for chance in survival]", "[1.0 for chance in survival]"),
    },
    ("series.py", "test_processes.py"): {
        "lengths of each process": ("            dist.broadcast(u, src=0)\n", "            pass\n"),
    },
    ("jacobian.py", "test_jacobian.py"): {
        "slope of ELU": ("clamp_(max=0).exp2_()", "clamp_(max=0).exp_()"),
        "slope of the slope of ELU": ("of_slope * (slope < 1)", "of_slope * (slope <= 1)"),
        "slope of ReLU everywhere": ("(x > 0).to(x.dtype)", "torch.ones_like(x)"),
        "not transposed": ("lambda w: F.linear(w, weight.t())", "lambda w: F.linear(w, weight)"),
        "layers in the wrong order backwards": ("for part in reversed(parts):", "for part in parts:"),
        "bias in the product": ("jvp=lambda v: F.conv2d(v, weight,", "jvp=lambda v: F.conv2d(v, weight, g.bias,"),
        "slope of tanh": ("1 - y.square()", "1 - y"),
        "rules for subclasses": ('getattr(type(g), "forward", None)', 'getattr(type(g).__mro__[1], "forward", None)'),
    },
    ("lipschitz.py", "test_jacobian.py test_lipschitz.py"): {
        "weights of a concatenation swapped": ("b * inner.jvp(v)], 1)", "a * inner.jvp(v)], 1)"),
        "one part of the transpose": ("a * w[:, : x.shape[1]] + b *", "b *"),
        "held weights not let go": ("normalization.hold(None)\n", "pass\n"),
        "another image size accepted": ("if x.shape[-2:] != self.image_size:", "if False:"),
    },
    ("operators.py", "test_lipschitz.py test_normalization.py"): {
        "padding off by one": ("return (kernel[0] - 1) // 2,", "return kernel[0] // 2,"),
        "torus too small": ("image_size[0] + kh - 1, image_size[1]", "image_size[0], image_size[1]"),
        "rows for columns": ("taps.sum(0 if norm == 1 else 1)", "taps.sum(1 if norm == 1 else 0)"),
    },
    ("normalization.py", "test_normalization.py test_lipschitz.py"): {
        "weights scaled up": (
            "torch.clamp(self.sigma(weight) / self.coeff, min=1.0)",
            "self.sigma(weight) / self.coeff",
        ),
        "coefficient forgotten": ("torch.clamp(self.sigma(weight) / self.coeff,", "torch.clamp(self.sigma(weight),"),
        "not transposed": ("u = apply_transpose(weight, apply(weight, self.u))", "u = self.u"),
        "Gram bound of the mean": ("rounding * self._bound(matrices).max()", "rounding * self._bound(matrices).mean()"),
        "Gram root off by one": ("/ 2**self.n_steps)", "/ 2 ** (self.n_steps + 1))"),
        "scale of the Gram iteration lost": ("log_scale = 2 * (log_scale + size.log())", "log_scale = 2 * log_scale"),
    },
    ("bounds.py", "test_lipschitz.py test_certificates.py"): {
        "smallest singular value": ("[..., -1].max()", "[..., 0].max()"),
        "no square root": ("return math.sqrt(max(float(largest), 0.0))", "return max(float(largest), 0.0)"),
        "sum for the product": (
            "math.prod(_bound(layer, norm) for layer in g)",
            "max(_bound(layer, norm) for layer in g)",
        ),
        "patches not repeated": ("math.sqrt(math.prod(g.kernel_size)) *", ""),
        "unknown layers pass": ("math.inf if rule is None else", "1.0 if rule is None else"),
        "alpha of ELU ignored": ("max(1.0, abs(g.alpha))", "1.0"),
        "b of a concatenation ignored": ("[a, b * _bound(g.f, norm)]", "[a, 0.0]"),
        "a found ratio that was not": ("largest = max(largest, float(_size(image, norm).max()))", "largest = 1.0"),
    },
    ("certificates.py", "test_certificates.py"): {
        "one is certified": ("all(block.upper < 1 for", "all(block.upper <= 1 for"),
        "any block is enough": ("bool(self.blocks) and all(", "bool(self.blocks) and any("),
        "lower instead of upper": ("all(block.upper < 1 for", "all(block.lower < 1 for"),
        "scaled by the whole factor in each layer": ("(target / bound) ** (1 / len(layers))", "target / bound"),
        "contracted blocks stretch": ("return max(0.0, 1 - upper[bijection]), 1", "return 1.0, 1"),
        "a step too few": ("return math.ceil(math.log(tolerance)", "return -1 + math.ceil(math.log(tolerance)"),
        "norms not converged": ("layer.normalization.converge(layer.unnormalized_weight)", "pass"),
    },
    ("bijections/memory.py", "test_memory.py"): {
        "sample 0's weight for all": (
            "if expanded or (upstream.is_cpu and bool((upstream == upstream[:1]).all())):",
            "if True:",
        ),
        "sample 0's weight for x": ("of_x = upstream.view(-1,", "of_x = upstream[:1].view(-1,"),
        "weights of now in backward": ("with replace_weights(g, weights):\n            return run(x)", "return run(x)"),
        "weights not scaled": ("upstream[:1].sum() * grad", "grad"),
    },
    ("normalization.py", "test_modules.py"): {
        "means of unit vectors": ("u = _unit(self.u.to(weight.dtype))", "u = self.u.to(weight.dtype, copy=True)"),
        "power iteration in backward": ("not (_in_backward() or is_transforming())", "not is_transforming()"),
        "weights held by all threads": ("class PerThread(threading.local):", "class PerThread:"),
    },
    ("bijections/base.py", "test_inputs.py"): {
        "any shape": ("    if fits and all(", "    if True or all("),
        "integers pass": ("if not x.is_floating_point():", "if False:"),
    },
    ("logdet.py", "test_inputs.py"): {
        "chance in eval mode": ("    if training:\n        return Krylov()", "    if True:\n        return Krylov()"),
    },
    ("jacobian.py", "test_jacobian.py test_derivatives.py"): {
        "native norms": ("sdpa_kernel(SDPBackend.MATH), _PlainNorms():", "sdpa_kernel(SDPBackend.MATH):"),
    },
    ("operators.py", "test_jacobian.py"): {
        "one image with its channels last": ("return x.contiguous() if len(x) == 1 else x.permute", "return x.permute"),
    },
    ("bijections/memory.py", "test_derivatives.py"): {
        "constant early gradients": (
            "if torch.is_grad_enabled():\n            found",
            "if False:\n            found",
        ),
        "parameters of now": ("if all(p is q for p, q in", "if all(p is not None for p, q in"),
    },
    ("bijections/residual.py", "test_derivatives.py"): {
        "no implicit gradient": (
            "return implicit(x, x.detach(), equation,",
            "return x + 0 * implicit(x, x.detach(), equation,",
        ),
        "the map at a constant solution": (
            "jacobian.again(x, *inputs) if torch.is_grad_enabled() or is_transforming() else jacobian",
            "jacobian",
        ),
    },
    ("bijections/actnorm.py", "test_bijections.py"): {
        "pixels not counted": ("self.log_scale.sum() * math.prod(x.shape[2:])", "self.log_scale.sum()"),
    },
    ("bijections/elementwise.py", "test_bijections.py"): {
        "wrong sign of the scale": ("-self.std.log().expand", "self.std.log().expand"),
        "slope of the logit": ("F.softplus(z) + F.softplus(-z) +", "F.softplus(z) - F.softplus(-z) +"),
    },
    ("solvers.py", "test_solvers.py"): {
        "error bound without its denominator": ("lipschitz / (1 - lipschitz) if", "lipschitz if"),
        "everything has converged": (
            "converged[left], steps[left] = done[leave], step",
            "converged[left], steps[left] = True, step",
        ),
        "converged samples stay": ("leave = ~finite | done | diverges", "leave = ~finite | done.all() | diverges"),
        "NaN stays": ("finite = torch.isfinite(largest)", "finite = torch.ones_like(largest, dtype=torch.bool)"),
        "bad steps kept": ("back = ~self.plain & ~(ratio <= self.rate)", "back = ~self.plain & (ratio > 1e9)"),
        "rate of plain steps not learnt": ("torch.maximum(self.rate, ratio.clamp(max=1.0))", "self.rate"),
        "divergence not seen": ("self.growth * ratio.clamp(min=1.0)", "self.growth"),
        "growth taken for divergence": ("self.growth_allowed = 10 * math.sqrt(d)", "self.growth_allowed = 1.5"),
        "growth never forgiven": ("torch.where(halved, 1.0, self.growth)", "self.growth"),
        "Anderson of the wrong sign": ("self.x + self.r - torch.einsum", "self.x + self.r + torch.einsum"),
        "Newton of the wrong sign": ("self.x + space.inverse()", "self.x - space.inverse()"),
        "steps not counted": (
            "converged[left], steps[left] = done[leave], step\n",
            "converged[left], steps[left] = done[leave], 1\n",
        ),
        "products not counted": ("steps + stepper.products * (steps - 1).clamp(min=0)", "steps"),
    },
    ("precision.py", "test_float32.py test_devices.py"): {
        "TF32 for whoever asks": ("tf32 = self.contexts[False] == 0", "tf32 = self.contexts[True] > 0"),
        "settings not put back": ("self.restore()\n", "pass\n"),
        "newer settings not put back": ("        for key, value in newer:\n            _set(key, value)\n", ""),
        "autocast left on": ("return without_autocast(torch.device(device))", "return nullcontext()"),
        "models in eval mode take TF32": ("if training or _chosen", "if True or _chosen"),
    },
    ("solvers.py", "test_float32.py test_devices.py"): {
        "a solve in TF32": ('with torch.no_grad(), use_precision("float32", x.device):', "with torch.no_grad():"),
        "slow samples taken for rounding": ("fell = (self.lowest <= 0.01 * self.highest) &", "fell ="),
        "rounding not noticed": (
            "(diverges | (2 * self.marked_at <= self.observed))",
            "(self.marked_at < 0)",
        ),
    },
    ("normalization.py", "test_devices.py"): {
        "norms in TF32": (
            'with use_precision("float32", weight.device):\n            return apply(weight, u).norm()',
            "return apply(weight, u).norm()",
        ),
    },
    ("bounds.py", "test_devices.py test_lipschitz.py"): {
        "bounds of weights that were rounded on a device": ("normalize(weight.double())", "normalize(weight).double()"),
    },
    ("probes.py", "test_devices.py"): {
        "probes drawn on the device": ("device=random_device(generator, like)", "device=like.device"),
    },
    ("training/step.py", "test_meta.py"): {
        "a learning rate on the CPU": ("torch.full((), rate, device=x.device)", "torch.full((), rate)"),
    },
    ("flows.py", "test_flows.py"): {
        "log-determinant subtracted": ("self.log_prior + self.logdet", "self.log_prior - self.logdet"),
        "nats for bits": ("(self.base.features * math.log(2))", "self.base.features"),
    },
    ("evaluation/likelihood.py", "test_evaluation.py test_uncertainty.py"): {
        "a narrower interval": ("1.96 * float(values.std())", "1.6 * float(values.std())"),
    },
    ("evaluation/calibration.py", "test_detection.py"): {
        "gaps of bins not weighted": (
            "np.bincount(members, gaps, n_bins)).sum()) / len(gaps)",
            "gaps).sum()) / len(gaps)",
        ),
        "chance without chance": ("(rng.random(len(p)) < p) - p", "(0.5 < p) - p"),
    },
    ("evaluation/detection.py", "test_detection.py"): {
        "the share of the wrong set": ("(ranks[m:] - rankdata(high)) / m", "(ranks[m:] - rankdata(high)) / n"),
        "variance of one set": ("beaten.var(ddof=1) / n + beating.var(ddof=1) / m", "beaten.var(ddof=1) / n"),
        "95 % of the wrong side": ("math.floor(n - 0.95 * n + 1e-9) + 1", "math.floor(0.95 * n + 1e-9) + 1"),
        "ties not reached": ('high, side="left")', 'high, side="right")'),
    },
    ("evaluation/intervals.py", "test_detection.py test_evaluation.py"): {
        "not Wilson's center": ("(p + z**2 / (2 * n)) / (1 + z**2 / n)", "p"),
    },
    ("evaluation/ood.py", "test_detection.py"): {
        "typicality with a sign": (".mean(1) - mean).abs()", ".mean(1) - mean)"),
        "typical of the test split": ("float(train.bits_per_dim.mean())", "float(inside.bits_per_dim.mean())"),
        "entropy of the wrong sign": ("return -(log_p.exp() * log_p).sum(1)", "return (log_p.exp() * log_p).sum(1)"),
    },
    ("evaluation/interpolation.py", "test_commands_evaluate.py"): {
        "arc from the wrong end": (
            "left = torch.where(arc, ((1 - t) * angle).sin()",
            "left = torch.where(arc, (t * angle).sin()",
        ),
        "not standardized": ("slerp((a - mean) / std, (b - mean) / std, t)", "slerp(a, b, t)"),
    },
    ("evaluation/solving.py", "test_commands_evaluate.py"): {
        "errors not of the range": ("error = errors / scale", "error = errors"),
        "the last block's evaluations": (".double().mean(0)\n    return error", ".double()[-1]\n    return error"),
    },
    ("evaluation/conditional.py", "test_commands_evaluate.py"): {
        "every latent accepted": ("< probabilities[:, label]]", "< 2 * probabilities[:, label]]"),
    },
    ("analysis/logdet.py", "test_analysis.py"): {
        "bias error of one probe": ("float(difference.var()) / draws", "float(difference.var())"),
        "products not counted": ("products.append(1)", "products.append(2)"),
    },
    ("analysis/inverse.py", "test_analysis.py"): {
        "the first step that is good": (
            "reached = above[-1] + 1 if above else 0",
            "reached = above[0] + 1 if above else 0",
        ),
        "a bound of one step more": ("e <= self.bound**k * (1", "e <= self.bound ** (k + 1) * (1"),
    },
    ("analysis/latent.py", "test_analysis.py"): {
        "chi-square of one dimension": ("stats.chi2(dims).cdf", "stats.chi2(dims - 1).cdf"),
        "not standardized": ("((z - mean) / std)", "(z - mean)"),
    },
    ("distributions.py", "test_analysis.py test_commands_evaluate.py"): {
        "logarithm for a deviation": ("return self.mean, self.log_std.exp()", "return self.mean, self.log_std"),
    },
    ("data/uci.py", "test_data_uci.py"): {
        "noise of one width": ("x + resolution * torch.rand", "x + resolution.mean() * torch.rand"),
        "other noise for each split": ("manual_seed(0))\n    train", "manual_seed(split_seed))\n    train"),
    },
    ("data/preparation.py", "test_data_tables.py"): {
        "noise of the whole range": ("else float(x.unique().diff().min())", "else float(x.unique().diff().max())"),
        "values that merge": ("if merged or far else", "if far else"),
        "values far from 0": ("if merged or far else", "if merged else"),
        "gaps filled by the median": (
            "known[torch.randint(len(known), (n,), generator=generator)]",
            "known.median(0).values",
        ),
    },
    ("data/discrete.py", "test_data_tables.py"): {
        "integers are no fault": ("if column.integer or column.categories:", "if column.categories:"),
        "only copies": ("if float(left[i, i]) < _FOLLOWS:", "if False:"),
    },
    ("data/columns.py", "test_data_tables.py"): {
        "integers rounded to the nearest": (
            "np.floor(values.astype(np.float64))",
            "np.rint(values.astype(np.float64))",
        ),
        "single precision": (
            "x[:, 0].astype(np.float64) + column.offset if column.offset",
            "(x[:, 0] + np.float32(column.offset)) if column.offset",
        ),
    },
    ("evaluation/baselines.py", "test_evaluation.py"): {
        "a covariance of one example": ("if len(x) < 2 * dims:", "if len(x) < 2:"),
    },
    ("bijections/reshape.py", "test_hybrids.py"): {
        "parts of latents in the wrong order": (
            "[bijection.out_shape, *latent_parts(bijection.rest)]",
            "[*latent_parts(bijection.rest), bijection.out_shape]",
        ),
    },
    ("classifiers.py", "test_hybrids.py"): {
        "a convolution without ReLU": ("BatchNorm(wide), nn.ReLU()", "BatchNorm(wide), nn.Identity()"),
        "images though the rest is not known": ("if len(images) == len(parts) else", "if images else"),
        "every pixel twice": ("3, stride=2, padding=1", "3, stride=1, padding=1"),
    },
    ("config.py", "test_config.py"): {
        "a description for other data": ('("data.", "task.")', '("task.",)'),
        "figures for another length": ("if decisive else set()) |", "if other else set()) |"),
        "words of the user dropped": ("dict(leaves(asdict(config)))) - given", "dict(leaves(asdict(config))))"),
    },
    ("report/overview.py", "test_report.py"): {
        "stale numbers unmarked": ("if run.stale(tree) else read(run)", "if False else read(run)"),
        "stale numbers compared": ('look="none", rank=None)', 'look="none")'),
    },
    ("commands/evaluate.py", "test_commands_evaluate.py"): {
        "a better evaluation lost": ("if others and asked == known:", "if False:"),
        "fewer draws than before": (
            "max(self.draws, other.draws), precision",
            "other.draws, precision",
        ),
    },
    ("capacity.py", "test_capacity.py"): {
        "layers that grow alike": ("/ 2 * (third - 2 * second + first)", "/ 2 * (third - second)"),
        "a block too many": ("total += (n - 1) *", "total += n *"),
        "what fits is refused": ("if needed > free:", "if needed > 0:"),
    },
    ("runs.py", "test_data_tables.py"): {
        "rows that have changed": ("all(abs(now - then) <= least for", "all(True for"),
    },
    ("data/source.py", "test_data_tables.py"): {
        "integers run together": ("    if n > left:", "    if False:"),
    },
    ("data/discrete.py", "test_data_user.py"): {
        "pixels of one scale alone": ('255.0: "multiples of 1/255", 256.0', "256.0"),
    },
}
