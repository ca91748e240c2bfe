"""What the transcription answers: every equation, for every unit and image."""

from typing import Any

import numpy as np

from . import character, maps, resnet, sparse, texts, vit, words
from .study import (
    ABOVE,
    CLASSES,
    CONCEPT_UNITS,
    CONCEPTS,
    DEPICT,
    FIRST,
    HEADS,
    INDIRECT,
    INERTIA_IMAGES,
    KEPT,
    LAST,
    MAP_NEURONS,
    NEAR,
    NEURONS,
    PAIRS,
    PAIRS_OF_CLASS,
    PREDICT,
    SECOND,
    SEGMENTED,
    SHOWN,
    SIDE,
    SPAN,
    SPANNED,
    SPURIOUS_NEURONS,
    TEMPLATES,
    TOP,
    WORDS,
    Given,
    M,
    Results,
    given,
    presence,
    units_of,
)
from .vit import Array


def unit_scale(M: Array) -> Array:
    """100 / ‖M(I)‖ of every image."""
    return np.array([100 / np.linalg.norm(row) for row in M])


def bare(of: Given, text: str) -> Array:
    return texts.unit(texts.encode(of.W, of.tokens[text], of.act))


def in_templates(of: Given, text: str) -> Array:
    return texts.sentence_mean(of.W, [of.tokens[template.format(text)] for template in TEMPLATES], of.act)


def described(phi: Array, components: int = 1) -> Results:
    """Statistics of effects [unit, image, d], stacked over units."""
    found = [character.characterise(of_unit, TOP, ABOVE, components) for of_unit in phi]
    return {name: np.stack([getattr(one, name) for one in found]) for name in character.Character._fields}


def named(prefix: str, values: dict[str, Any]) -> Results:
    return {f"{prefix}.{key}": np.asarray(value) for key, value in values.items()}


def pursued(r: Array, t: Array) -> Results:
    found = [sparse.matching_pursuit(one, t, M) for one in r]
    return {name: np.stack([getattr(one, name) for one in found]) for name in sparse.Sparse._fields}


def spanned(outputs: Array, t: Array) -> Results:
    """Of heads' outputs [head, image, d]."""
    found = [sparse.text_span(of_head, t, SPANNED) for of_head in outputs]
    return {name: np.stack([getattr(one, name) for one in found]) for name in sparse.Spanned._fields}


def dense(found: Results, count: int) -> Array:
    """Coefficients as a matrix [unit, text] with zeros."""
    gamma = np.zeros((len(found["chosen"]), count))
    for n, (chosen, values) in enumerate(zip(found["chosen"], found["gamma"], strict=True)):
        gamma[n, chosen] = values
    return gamma


def concepts_over_groups(of: Given, r: Array, phi: Array, M_shown: Array, presence: Array) -> Results:
    """Shares of concepts [concept, image], their units and their correlation with labels. phi [unit, image, d]"""
    shares, units = [], []
    for concept in CONCEPTS:
        chosen = words.units_of_concept(r, in_templates(of, concept), CONCEPT_UNITS)
        units.append(chosen)
        shares.append([words.concept_share(phi[:, i], M, chosen) for i, M in enumerate(M_shown)])
    correlation = [words.point_biserial(np.array(row), label) for row, label in zip(shares, presence, strict=True)]
    return named("shift", {"share": shares, "units": units, "presence": presence, "correlation": correlation})


def labels(M: Array, t: Array) -> Array:
    """A class for each image: the model's own answer, but for every fifth, which it gets as wrong as can be."""
    label = np.array([int(np.argmax(t @ row)) for row in M])
    label[::5] = [int(np.argmin(t @ row)) for row in M[::5]]
    return label


def ablations(M: Array, phi: Array, found: Results, t: Array, r_hat: dict[int, Array], layer: Array) -> Results:
    """Accuracy (top-1, top-5, agreement, cosine, margin) in every setting; of M [image, d], phi [unit, image, d], r_hat by m."""
    b, tau, r = found["b"], found["tau"], found["r"]
    units = range(len(phi))
    ablated = [character.mean_ablated(phi[n], b[n]) for n in units]
    psi = {
        "none": phi,
        "all": ablated,
        "large": [character.large_ablated(phi[n], b[n], tau[n]) for n in units],
        "small": [character.small_ablated(phi[n], b[n], tau[n]) for n in units],
    }
    for m, estimate in r_hat.items():
        psi[f"words {m}"] = [character.reconstructed_by_words(phi[n], b[n], r[n, 0], estimate[n]) for n in units]
    for c in range(1, r.shape[1] + 1):
        psi[f"pc {c}"] = [character.reconstructed(phi[n], b[n], r[n, :c]) for n in units]
    for one in sorted(set(layer.tolist())):
        psi[f"all of {one}"] = [ablated[n] if layer[n] == one else phi[n] for n in units]
    kept = set(np.argsort(-found["top_norm"].mean(1), kind="stable")[: round(KEPT * len(phi))].tolist())
    psi["keep"] = [phi[n] if n in kept else ablated[n] for n in units]
    psi["keep pc"] = [psi["pc 1"][n] if n in kept else ablated[n] for n in units]
    label = labels(M, t)
    return {name: np.array(character.accuracy(M, character.changed(M, phi, np.stack(list(new))), t, label)) for name, new in psi.items()}  # fmt: skip  # noqa: E501


def jointly_ablated(of: Given, runs: list[vit.Run], images: Array) -> Array:
    """M of images with the activations of all neurons at once at their means of each token. [image, d]"""
    mean = [vit.Replaced(layer, n, np.mean([run.p[layer][:, n] for run in runs], axis=0)) for layer, n in units_of(INDIRECT)]
    return np.stack([vit.forward(of.W, image, HEADS["vit"], of.act, tuple(mean)).M for image in images])


def vit_runs(of: Given) -> tuple[list[vit.Run], list[vit.Run]]:
    return tuple([vit.forward(of.W, image, HEADS["vit"], of.act) for image in images] for images in (of.measured, of.shown))


def second_orders(of: Given, runs: list[vit.Run], units: list[tuple[int, int]]) -> Array:
    """[unit, image, d], raw."""
    return np.array([[vit.second_order(of.W, run, *unit, HEADS["vit"]) for run in runs] for unit in units])


def indirects(of: Given, runs: list[vit.Run], units: list[tuple[int, int]]) -> Array:
    """[unit, image, d], raw."""
    phi = []
    for layer, n in units:
        mean = np.mean([run.p[layer][:, n] for run in runs], axis=0)  # of each token
        phi.append([vit.indirect(of.W, image, layer, n, mean, HEADS["vit"], of.act) for image in of.measured])
    return np.array(phi)


def head_effects(of: Given, runs: list[vit.Run], layers: range) -> Array:
    """[layer · head, image, d], raw."""
    heads = [(layer, h) for layer in layers for h in range(HEADS["vit"])]
    return np.array([[vit.head_effect(of.W, run, layer, h, HEADS["vit"]) for run in runs] for layer, h in heads])


def effects(of: Given, runs: list[vit.Run]) -> dict[str, Array]:
    """Effects of every kind [unit, image, d], raw."""
    return {
        "second": second_orders(of, runs, units_of(SECOND)),
        "first": np.array([[vit.first_order(of.W, run, *unit) for run in runs] for unit in units_of(FIRST)]),
        "indirect": indirects(of, runs, units_of(INDIRECT)),
    }


def scaled_results() -> Results:
    of = given("scaled")
    runs, _ = vit_runs(of)
    M = np.stack([run.M for run in runs])
    all_results = {"M": M}
    for name, raw in effects(of, runs).items():
        all_results |= named(name, described(raw * unit_scale(M)[:, None]))
    return all_results


def vit_results() -> Results:
    of = given("vit")
    runs, shown = vit_runs(of)
    M_measured, M_shown = (np.stack([run.M for run in some]) for some in (runs, shown))
    scale, scale_shown = unit_scale(M_measured)[:, None], unit_scale(M_shown)[:, None]
    raw = effects(of, runs)
    found, found_raw = described(raw["second"] * scale, components=2), described(raw["second"])
    r = found["r"][:, 0]
    all_results = {"M": M_measured, "M_shown": M_shown} | named("second", found) | named("raw", found_raw)
    for name in ("first", "indirect"):
        all_results |= named(name, described(raw[name] * scale))

    t = np.stack([bare(of, text) for text in of.pool])
    pool_mean = t.mean(0)
    D = texts.pool_texts(t)
    pursuit = pursued(r, D)
    all_results |= named("pursuit", pursuit) | named("dimensions", pursued(r, texts.pool_dimensions(t)))
    all_results |= named("textspan", spanned(head_effects(of, runs, SPAN) * scale, D))
    gamma = dense(pursuit, len(of.pool))

    v = bare(of, PREDICT) - bare(of, DEPICT)
    neurons = words.chosen_neurons(v, r, SPURIOUS_NEURONS)
    near = words.near(t - pool_mean, bare(of, PREDICT)[None] - pool_mean, NEAR)
    left_out = sorted({*near, of.pool.index(PREDICT), of.pool.index(DEPICT)})
    scores = {
        "effect": words.spurious_scores(v, r, gamma, neurons),
        "overlap": words.spurious_scores(v, r, words.overlaps(r, D), neurons),
        "similar": words.similar_scores(v, t),
    }
    all_results |= named("spurious", scores | {"neurons": neurons, "left_out": left_out})

    phi_shown_raw = second_orders(of, shown, units_of(SECOND))  # [unit, image, d]
    phi_shown = phi_shown_raw * scale_shown
    concept = [words.concept_scores(phi_shown[:, i], found["b"], found["tau"], gamma) for i in range(SHOWN)]
    signed = [words.concept_scores_signed(phi_shown[:, i], found["b"], r, gamma) for i in range(SHOWN)]
    norms = np.linalg.norm(phi_shown - found["b"][:, None], axis=-1)
    on_threshold = np.abs(norms / found["tau"][:, None] - 1).min()
    all_results |= named("concepts", {"score": [w for w, _ in concept], "active": [len(n) for _, n in concept], "signed": signed, "on_threshold": on_threshold})  # fmt: skip  # noqa: E501
    unit = np.array(units_of(SECOND))
    heat = [[maps.heat_map(run, unit, r, bare(of, text), MAP_NEURONS, SIDE) for text in SEGMENTED] for run in shown[:2]]
    all_results["heat"] = np.array(heat).astype(np.float32)
    all_results |= concepts_over_groups(of, r, phi_shown, M_shown * scale_shown, presence())
    all_results["inertia"] = np.array([words.inertia(M_measured[top[:INERTIA_IMAGES]]) for top in found["top_image"]])

    classes = np.stack([in_templates(of, name) for name in CLASSES])
    r_hat = {
        m: np.stack([sparse.refitted(*one, m) for one in zip(r, [D] * len(r), pursuit["chosen"], strict=True)]) for m in WORDS
    }
    all_results |= named("ablate", ablations(M_shown * scale_shown, phi_shown, found, classes, r_hat, unit[:, 0]))
    all_results |= named("ablate_raw", ablations(M_shown, phi_shown_raw, found_raw, classes, {}, unit[:, 0]))
    joint = character.accuracy(M_shown, jointly_ablated(of, runs, of.shown), classes, labels(M_shown, classes))
    return all_results | named("ablate", {"joint": joint, "label": labels(M_shown, classes)})


def resnet_runs(of: Given) -> tuple[list[resnet.Pooling], list[resnet.Pooling]]:
    return tuple([resnet.pool(of.W, image, HEADS["resnet"]) for image in images] for images in (of.measured, of.shown))


def contributions(of: Given, runs: list[resnet.Pooling]) -> Array:
    """[pair, image, d], raw."""
    return np.array([[resnet.contribution(of.W, run, n, h, HEADS["resnet"]) for run in runs] for n, h in PAIRS])


def resnet_results() -> Results:
    of = given("resnet")
    runs, shown = resnet_runs(of)
    M_measured, M_shown = (np.stack([run.M for run in some]) for some in (runs, shown))
    pairs = contributions(of, runs)
    short = M_measured - pairs.sum(0) - resnet.constant(of.W, HEADS["resnet"])
    found = described(pairs)
    r = found["r"][:, 0]
    all_results = {"M": M_measured, "M_shown": M_shown, "sum_of_pairs": np.abs(short).max()} | named("pairs", found)
    strength = found["top_norm"].mean(1)
    order = np.argsort(-strength, kind="stable")
    count = round(KEPT * len(order))
    kept = np.sort(order[:count])
    rest = sum(found["b"][n] for n in order[count:])
    all_results |= named("keep", {"units": kept, "rest_mean": rest, "margin": strength[order[count - 1]] / strength[order[count]] - 1})  # fmt: skip  # noqa: E501

    heads_of = lambda phi: phi.reshape(NEURONS["resnet"], HEADS["resnet"], *phi.shape[1:])  # noqa: E731
    neurons = heads_of(pairs).sum(1)
    neurons_found = described(neurons, components=2)
    all_results |= named("neurons", neurons_found)
    t = np.stack([bare(of, text) for text in of.pool])
    D = texts.pool_texts(t)
    pairs_shown = contributions(of, shown)
    all_images = np.concatenate([pairs, pairs_shown], axis=1)  # or the outputs of heads would not span all that heads can write
    all_results |= named("textspan", spanned(heads_of(all_images).sum(0), D))
    pursuit = pursued(r[kept], D)
    all_results |= named("pursuit", pursuit)

    classes = np.stack([in_templates(of, name) for name in CLASSES])
    centred = texts.class_texts(classes)
    unit = np.array([(LAST, n, h) for n, h in PAIRS])
    chosen = [maps.pairs_of_class(r, t_c, PAIRS_OF_CLASS) for t_c in centred]
    logits: dict[str, list[Array]] = {name: [] for name in ("pairs", "heads", "neurons", "sink", "maskclip", "values", "qqkk")}
    for run in shown[:2]:
        side = round((len(run.z) - 1) ** 0.5)
        Z = run.z[1:].reshape(side, side, -1)
        R = maps.head_maps(of.W, run, HEADS["resnet"], side)
        for what in ("pairs", "heads", "neurons"):
            logits[what].append(maps.pair_logits(Z, R, unit, chosen, centred, what))
        mended = maps.head_maps(of.W, run, HEADS["resnet"], side, sink=True)
        logits["sink"].append(maps.pair_logits(maps.without_sink(Z), mended, unit, chosen, centred))
        tokens = {
            "maskclip": resnet.mask_clip(of.W, run.z[1:]),
            "values": resnet.mask_clip(of.W, run.x[1:]),
            "qqkk": resnet.query_and_key_attention(of.W, run.x, HEADS["resnet"])[1:],
        }
        for what, of_token in tokens.items():
            score = np.array([[texts.unit(token) @ t_c for token in of_token] for t_c in centred])
            logits[what].append(score.reshape(len(centred), side, side))
    all_results |= named("logits", logits)

    all_results |= concepts_over_groups(of, r, pairs_shown, M_shown, presence())
    all_results["inertia"] = np.array([words.inertia(M_measured[top[:INERTIA_IMAGES]]) for top in found["top_image"]])
    all_results |= named("ablate", ablations(M_shown, pairs_shown, found, classes, {}, unit[:, 0]))
    of_neurons = heads_of(pairs_shown).sum(1), neurons_found, classes, {}, np.full(len(neurons), LAST)
    all_results |= named("ablate_neurons", ablations(M_shown, *of_neurons))
    return all_results | named("ablate", {"label": labels(M_shown, classes)})
