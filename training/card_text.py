"""Texts of the model cards; the figures are measured and stored beside the weights."""

from typing import NamedTuple


class CardText(NamedTuple):
    """The texts of one card."""

    opening: str
    notes: dict[str, str]
    """Explanations of the tables, by section title."""
    closing: str


EMOJI_VIT = CardText(
    opening="""
# emoji-vit

A small but real CLIP model that comes with cliptools: an image tower and a text tower for 526 concepts that an emoji can show.
With this model every command runs offline, and the results of the commands can be checked: each picture is drawn from a
description, so its masks, its captions and the false cues of the training are known exactly.

```python
model = open_clip.create_model("local-dir:cliptools/data/models/emoji-vit")
tokenizer = open_clip.get_tokenizer("local-dir:cliptools/data/models/emoji-vit")
```

**Architecture.** The modules are open_clip's own classes. Image: ViT, 64 pixels, patches of 8 (64 patch tokens and a class
token), 8 layers, width 192, 6 heads, 768 neurons per layer, GELU. Text: 2 causal layers, width 120, 4 heads, context 32,
open_clip's tokenizer and vocabulary. Joint space: 192 dimensions. Weights: fp16 safetensors; commands compute in fp32 unless an
option sets another precision.

**Data.** The scenes are composed during training, and no scene appears twice. A scene has one to four of 526 emoji in three
styles of artwork, with varied size, position, rotation and mirroring, on plain, graded, striped, chequered or clouded
backgrounds. A caption names the emoji by name or synonym in one of eight templates. One style of every fifth concept is never
shown in training. 6 % of the scenes have a planted pair instead: the cue of the pair is drawn, with or without (40 %) the named
concept, and the caption names only the named concept. Artwork: Fluent Emoji, Noto Emoji, Twemoji; their licences and authors
are in [ATTRIBUTION.md](../../artwork/ATTRIBUTION.md). The weights are under the project's licence.

**Training.** The model was trained on two CPU cores, in three stages by modules of `training`:

1. *Image tower* (`image`), against a learned table of class embeddings. AdamW, 1.2e-3 with a cosine to a hundredth, decay 0.05,
   batch 64. Scenes begin with one large emoji on white and reach full difficulty after 30 % of the run; background tokens are
   dropped until 80 %. In addition to the softmax over the table, the loss has cross-entropy terms: the sum of second-order
   effects of layers 5 and 6 alone must name the scene (weight 0.6); tokens that show an emoji must name it, as read by the last
   two blocks (0.4); the output of the MLPs of layers 5 and 6 at these tokens must name it alone (0.3). A last term favours few
   writing neurons (0.02).
2. *Text tower* (`joint`), towards the frozen table, in the 120 dimensions that its outputs can span: cosine to the sum of
   the named concepts' embeddings, and cross entropy over all concepts.
3. *Both* (`joint`): the objective of stage 1 with the text tower's own embeddings of names, synonyms and templates, drawn again
at
   each step, instead of the table, at 1.5e-4 (image) and 5e-4 (text), in addition to stage 2's loss on captions.
""",
    notes={
        "Second-order effects carry the answer": """
Zero-shot top-1 over all concepts on single-emoji scenes, with Wilson's 95 % interval: without a change, with the second-order
effect of every neuron of the layers replaced by its mean over 2,000 scenes, and by its reconstruction from the first
principal direction. The ablation changes the frozen path in the output; effects of several layers are added.
""",
        "Words name what neurons look at": """
For the upper half of a layer's neurons by effect norm: the share of their top 10 of 2,000 scenes that show an emoji named
by one of the neuron's 8 strongest positive words (`clip-effects | clip-decompose --m 32`), compared with the share for words
that are assigned to the neurons at random; means over neurons with 95 % intervals.
""",
        "Accuracy on held-out scenes": """
The scenes come from seeds that no stage of training used, without plants. Zero-shot: over all 526 concepts, the name with
its article in three templates, mean of unit embeddings. Recall@2: share of the two named concepts among the two best.
Text to image: captions with synonyms against 1,000 scenes of one to four emoji; a picture with exactly the same concepts
counts. Intervals: Wilson's, 95 %.
""",
        "Planted facts": """
The effect of each pair, measured by intervention: the scenes have two or three emoji and do not show the pair; the topmost
emoji is replaced by the cue, or by concepts that are in no plant, with the same position, size, rotation and style. *cosine*:
the increase of the named concept's cosine by the cue minus the increase by the other concepts, with the 95 % bootstrap interval
over scenes; *logit*: the cosine times the model's scale. *rank with the cue*, *with a control*: median rank of the named
concept among all 526 scores. *rank among cues*: rank of the cue among all 525 other concepts by the named concept's score when
they are drawn. A pair is learned if the interval lies above 0.
""",
    },
    closing="""
## Limits

The model knows drawings of 526 concepts and the words for them, and nothing else. It cannot interpret photographs, other words,
numbers of objects, positions and relations, and words that are not in the training all lie close together. False cues are in
the training on purpose. The model is a test object for interpretability research and must not be used as a classifier.
""",
)

EMOJI_RN = CardText(
    opening="""
# emoji-rn

The second small but real CLIP model that comes with cliptools: a ResNet with attention pooling, which shares the text tower of
[emoji-vit](../emoji-vit/README.md). It has the same purpose: every picture is drawn from a description, so masks,
captions and the false cues of the training are known exactly.

```python
model = open_clip.create_model("local-dir:cliptools/data/models/emoji-rn")
tokenizer = open_clip.get_tokenizer("local-dir:cliptools/data/models/emoji-rn")
```

**Architecture.** The modules are open_clip's own classes. Image: ModifiedResNet, 128 pixels, 2 bottlenecks in each of 4 stages,
width 16; the last stage has 4 × 4 tokens of 512 channels (neurons), which 16 heads pool: 8,192 neuron–head pairs. Text: the
weights of emoji-vit. Joint space: 192 dimensions. Weights: fp16 safetensors; commands compute in fp32 unless an option sets
another precision.

**Data.** The data are the same as for emoji-vit: scenes of one to four of 526 emoji in three styles, one style of every fifth
concept never shown, planted pairs in 6 % of the scenes. Artwork: Fluent Emoji, Noto Emoji, Twemoji; their licences and authors
are in [ATTRIBUTION.md](../../artwork/ATTRIBUTION.md). The weights are under the project's licence.

**Training.** The model was trained on one CPU core (`image --classes-of emoji-vit`) against the class embeddings of emoji-vit's
text tower, which are not changed. AdamW, 1.2e-3 with a cosine to a hundredth, decay 0.05, batch 64: 32 scenes and their mirror
images. Scenes begin with one large emoji on white and reach full difficulty after 30 % of the run. In addition to the softmax
over the classes, the loss has a cross-entropy term for tokens that show an emoji, which must name it through the pooling
layer's value and output matrices (weight 0.6), and a small term that favours few writing neurons at a token (0.02).
""",
    notes={
        "Words name what units look at": """
For the upper half of the units by effect norm: the share of their top 10 of 2,000 scenes that show an emoji named by one of
the unit's 8 strongest positive words (`clip-effects --units … | clip-decompose --m 32`), compared with the share for words that
are assigned to the units at random; means over units with 95 % intervals.
""",
    }
    | {key: EMOJI_VIT.notes[key] for key in ("Accuracy on held-out scenes", "Planted facts")},
    closing=EMOJI_VIT.closing,
)

EMOJI_VIT2 = CardText(
    opening="""
# emoji-vit2

A small but real CLIP model that comes with cliptools, trained so that single neurons mean something: the successor of
[emoji-vit](../emoji-vit/README.md), with the same architecture but for the joint space, and sparse late MLPs. It also knows
colours, sizes, places, grounds, styles and kinds of things, it can read short words, and its training has planted facts of
three more kinds.

```python
model = open_clip.create_model("local-dir:cliptools/data/models/emoji-vit2")
tokenizer = open_clip.get_tokenizer("local-dir:cliptools/data/models/emoji-vit2")
```

**Architecture.** The modules are open_clip's own classes. Image: ViT, 64 pixels, patches of 8 (64 patch tokens and a class
token), 8 layers, width 192, 6 heads, 768 neurons per layer, GELU. Text: 2 causal layers, width 120, 4 heads, context 32,
open_clip's tokenizer and vocabulary. Joint space: 120 dimensions. Weights: safetensors, fp16 but for the token embedding,
which has 8 bits (float8_e4m3fn); commands compute in fp32 unless an option sets another precision.

**Data.** Scenes as for emoji-vit. In training, half of the emoji are drawn in another look: colours changed, tinted,
blended from two styles, stretched, as a silhouette or as an outline; 15 % of the scenes have a written word of up to seven
letters, which the caption names too. Captions and labels also say colours, sizes, places, numbers, the ground's colour and
pattern, the style, Unicode's kinds of things, and whether a word is written: 79 attributes in nine groups (vocabulary
`scenes`). One style of every fifth concept is never shown in training, neither in a blend nor as an outline. 6 % of the
scenes have a planted pair, and 3 % one of eight planted facts: a ground, a written word or a way of drawing, whose captions
name a concept that half of these scenes do not show ([facts.jsonl](../../artwork/facts.jsonl)). Artwork: Fluent Emoji, Noto
Emoji, Twemoji; their licences and authors are in [ATTRIBUTION.md](../../artwork/ATTRIBUTION.md). The weights are under the
project's licence.

**Training.** On CPU cores, by modules of `training`; the table below has the length of each stage:

1. *Image tower* (`image --sparse 0`), from emoji-vit's, against a table of embeddings of the concepts and the attributes:
   the objective of emoji-vit, and a softmax over each group of attributes (weight 0.3).
2. *Sparse MLPs* (`dictionary`): the MLPs of layers 5 and 6 are replaced by transcoders, learned from their own inputs and
   outputs without labels: of 768 neurons the three strongest write at a token.
3. *Image tower* (`image`) again, with two more terms: the share of the writing at a token that neurons beyond the two
   strongest do (weight 1.5; a neuron's writing is the distance of its activation from its median, times how far it moves
   the logits apart), and the entropy that the use of neurons lacks (weight 5).
4. *Text tower and both* (`joint`), as for emoji-vit, with stage 3's objective.

**What training asked for.** The loss asks that few neurons of layers 5 and 6 write at a token, that all of them are used,
that the second-order path names the scene, and that tokens and the late MLPs name the emoji. So that these hold is no
evidence for the papers. No term says what a neuron is to mean.
""",
    notes={key: EMOJI_VIT.notes[key] for key in ("Accuracy on held-out scenes", "Planted facts")}
    | {
        "Attributes of held-out scenes": """
Share of scenes (half of their emoji in other looks, half of them with a word) of which the highest score of a group's words
is true, with Wilson's 95 % interval.
""",
        "Planted facts of other kinds": """
The effect of each fact, measured by intervention: a scene of one emoji that is in no fact, with the property (a ground, a
word, a way of drawing) or with up to three others of its kind. *cosine*: the increase of the named concept's cosine by the
property minus the mean increase by the others, with the 95 % bootstrap interval over scenes. A fact is learned if the
interval lies above 0.
""",
    },
    closing="""
## Limits

The model knows drawings of 526 concepts, their attributes and the words for them, and nothing else. It cannot interpret
photographs, other words and relations; the table of attributes says which of them it tells well. Words that are not in the
training all lie close together. False cues are in the training on purpose. The model is a test object for interpretability
research and must not be used as a classifier.
""",
)

TEXTS = {"emoji-vit": EMOJI_VIT, "emoji-rn": EMOJI_RN, "emoji-vit2": EMOJI_VIT2}
