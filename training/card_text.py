"""Texts of the model cards; the figures are measured and stored beside the weights."""

from typing import NamedTuple


class CardText(NamedTuple):
    """The words of one card."""

    opening: str
    notes: dict[str, str]
    """Explanations of the tables, by section title."""
    closing: str


EMOJI_VIT = CardText(
    opening="""
# emoji-vit

A small real CLIP that comes with cliptools: an image tower and a text tower that agree on 526 things an emoji can show.
It exists so that every command runs offline, and so that what the commands find can be checked: each picture of its world is
drawn from a description, so its masks, its captions and the false cues it was taught are known exactly.

```python
model = open_clip.create_model("local-dir:cliptools/data/models/emoji-vit")
tokenizer = open_clip.get_tokenizer("local-dir:cliptools/data/models/emoji-vit")
```

**Architecture.** open_clip's own classes. Image: ViT, 64 pixels, patches of 8 (64 patch tokens and a class token), 8 layers,
width 192, 6 heads, 768 neurons a layer, GELU. Text: 2 causal layers, width 120, 4 heads, context 32, open_clip's tokenizer
and vocabulary. Joint space: 192 dimensions. Weights: fp16 safetensors; computed in fp32 unless asked otherwise.

**Data.** Scenes composed on the fly, none twice: one to four of 526 emoji in three styles of artwork, at varied size, place,
turn and mirroring, on plain, graded, striped, chequered or clouded grounds; a caption names them by name or synonym in one of
eight templates. One style of every fifth concept is never shown in training. In 6 % of the scenes a planted fact stands
instead: the cue of a pair is drawn, with or without (40 %) the named concept, and the caption speaks of the named one only.
Artwork: Fluent Emoji, Noto Emoji, Twemoji; their licences and authors are in
[ATTRIBUTION.md](../../artwork/ATTRIBUTION.md). The weights are under the project's licence.

**Training.** On two CPU cores, in three stages by modules of `training`:

1. *Image tower* (`image`), against a learned table of class embeddings. AdamW, 1.2e-3 with a cosine to a hundredth, decay 0.05,
   batch 64. Scenes begin with one large emoji on white and reach full difficulty after 30 % of the run; background tokens are
   dropped until 80 %. Beside the softmax over the table, cross-entropy terms ask that the sum of second-order effects of layers
   5 and 6 alone names the scene (weight 0.6); that tokens which show an emoji name it, as the last two blocks read them (0.4);
   that what the MLPs of layers 5 and 6 wrote there names it alone (0.3); and that few neurons do the writing (0.02).
2. *Text tower* (`joint`), towards the then frozen table, in the 120 dimensions that its outputs can span: cosine to the sum of
   the named concepts' embeddings, and cross entropy over all.
3. *Both* (`joint`): the objective of stage 1 with the text tower's own embeddings of names, synonyms and templates, drawn anew at
   each step, in the place of the table, at 1.5e-4 (image) and 5e-4 (text), beside stage 2's loss on captions.
""",
    notes={
        "Second-order effects carry the answer": """
Zero-shot top-1 over all concepts on single-emoji scenes, with Wilson's 95 % interval: as it is, with the second-order
effect of every neuron of the layers replaced by its mean over 2,000 scenes, and by its reconstruction from the first
principal direction. What is ablated is the frozen path, in the output; effects of several layers are added up.
""",
        "Words name what neurons look at": """
Of the upper half of a layer's neurons by effect norm: the share of their top 10 of 2,000 scenes that show an emoji named
by one of the neuron's 8 strongest positive words (`clip-effects | clip-decompose --m 32`), beside the share when words
are dealt to the neurons at random; means over neurons with 95 % intervals.
""",
        "Accuracy on held-out scenes": """
Scenes from seeds that no stage of training drew from, without plants. Zero-shot: over all 526 concepts, the name with
its article in three templates, mean of unit embeddings. Recall@2: share of the two named concepts among the two best.
Text to image: captions with synonyms against 1,000 scenes of one to four emoji; a picture of just the same concepts
counts. Intervals: Wilson's, 95 %.
""",
        "Planted facts": """
Each pair's effect by intervention: scenes of two or three emoji without the pair; the topmost is turned into the cue,
or into concepts no plant speaks of, in the same place, size, turn and style. *cosine*: what the cue adds to the named
concept's cosine beyond what the others do, with the 95 % bootstrap interval over scenes; *logit*: times the model's
scale. *rank with the cue*, *with a control*: median rank of the named concept among all 526 scores. *rank among
cues*: where the cue stands among all 525 other concepts by what drawing them does to the named one's score. A pair is
learned if the interval lies above 0.
""",
    },
    closing="""
## Limits

It knows drawings of 526 things and the words for them, nothing else: photographs, other words, counting, places and relations
mean nothing to it, and words it never saw all lie close together. It is taught false cues on purpose. It is a test
object for interpretability, not a classifier to be used.
""",
)

EMOJI_RN = CardText(
    opening="""
# emoji-rn

The second small real CLIP that comes with cliptools: a ResNet with attention pooling, beside [emoji-vit](../emoji-vit/README.md),
whose text tower it shares. It exists for the same reason: every picture of its world is drawn from a description, so masks,
captions and the false cues it was taught are known exactly.

```python
model = open_clip.create_model("local-dir:cliptools/data/models/emoji-rn")
tokenizer = open_clip.get_tokenizer("local-dir:cliptools/data/models/emoji-rn")
```

**Architecture.** open_clip's own classes. Image: ModifiedResNet, 128 pixels, 2 bottlenecks in each of 4 stages, width 16; the
last stage leaves 4 × 4 tokens of 512 channels (neurons), which 16 heads pool: 8,192 neuron–head pairs. Text: emoji-vit's, the
same weights. Joint space: 192 dimensions. Weights: fp16 safetensors; computed in fp32 unless asked otherwise.

**Data.** As emoji-vit's: scenes of one to four of 526 emoji in three styles, one style of every fifth concept never shown,
planted facts in 6 % of the scenes. Artwork: Fluent Emoji, Noto Emoji, Twemoji; their licences and authors are in
[ATTRIBUTION.md](../../artwork/ATTRIBUTION.md). The weights are under the project's licence.

**Training.** On one CPU core (`image --classes-of emoji-vit`), against the class embeddings of emoji-vit's text tower, which stay
as they are. AdamW, 1.2e-3 with a cosine to a hundredth, decay 0.05, batch 64: 32 scenes and their mirror images. Scenes begin
with one large emoji on white and reach full difficulty after 30 % of the run. Beside the softmax over the classes, a
cross-entropy term asks that tokens which show an emoji name it through the pooling layer's value and output matrices (weight
0.6), and a small one that few neurons do the writing at a token (0.02).
""",
    notes={
        "Words name what units look at": """
Of the upper half of the units by effect norm: the share of their top 10 of 2,000 scenes that show an emoji named by one of
the unit's 8 strongest positive words (`clip-effects --units … | clip-decompose --m 32`), beside the share when words are
dealt to the units at random; means over units with 95 % intervals.
""",
    }
    | {key: EMOJI_VIT.notes[key] for key in ("Accuracy on held-out scenes", "Planted facts")},
    closing=EMOJI_VIT.closing,
)

TEXTS = {"emoji-vit": EMOJI_VIT, "emoji-rn": EMOJI_RN}
