"""Texts of the model cards; the figures are measured and stored beside the weights."""

from typing import NamedTuple


class CardText(NamedTuple):
    """The texts of one card."""

    opening: str
    notes: dict[str, str]
    """Explanations of the tables, by section title."""
    closing: str


NOTES = {
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
}
"""Explanations of the tables."""

DATA = """
**Data.** The scenes are composed during training, and no scene appears twice in a stage. A scene has one to four of 526 emoji
in three styles of artwork, with varied size, position, rotation and mirroring, on plain, graded, striped, chequered or clouded
backgrounds. Half of the emoji are drawn in another look: colours changed, tinted, blended from two styles, stretched, as a
silhouette or as an outline; two fifths of the scenes have one of the 21 names of at most three letters written on them (the
first scenes of stage 1 had more words on fewer scenes: 239 of up to seven letters on 15 % of 120,000, 64 of up to four on 25 %
of 100,000, after which the models read less than a tenth). Captions name the word too, and an emoji by name or synonym in one
of eight templates; captions and labels also say colours, sizes, places, numbers, the ground's colour and pattern, the style,
Unicode's kinds of things, and whether a word is written: 79 attributes in nine groups (vocabulary `scenes`). One style of
every fifth concept is never shown in training, neither in a blend nor as an outline. 6 % of the scenes have a planted pair:
the cue of the pair is drawn, with or without (40 %) the named concept, and the caption names only the named concept. 3 % have
one of eight planted facts: a ground, a written word or a way of drawing, whose captions name a concept that half of these
scenes do not show ([facts.jsonl](../../artwork/facts.jsonl)). Artwork: Fluent Emoji, Noto Emoji, Twemoji; their licences and
authors are in [ATTRIBUTION.md](../../artwork/ATTRIBUTION.md). The weights are under the project's licence.
"""

CLOSING = """
## Limits

The model knows drawings of 526 concepts, their attributes and the words for them, and nothing else. It cannot interpret
photographs, other words and relations. Written words that it may read are the 21; the tables say how well it does, and which
attributes it tells well. Words that are not in the training all lie close together. False cues are in the training on purpose.
The model is a test object for interpretability research and must not be used as a classifier.
"""

EMOJI_VIT2 = CardText(
    opening=f"""
# emoji-vit2

A small but real CLIP model that comes with cliptools: an image tower and a text tower for 526 concepts that an emoji can show,
and for their colours, sizes, places, grounds, styles and kinds. It is trained so that single neurons mean something. With this
model every command runs offline, and the results of the commands can be checked: each picture is drawn from a description, so
its masks, its captions and the false cues of the training are known exactly.

```python
model = open_clip.create_model("local-dir:cliptools/data/models/emoji-vit2")
tokenizer = open_clip.get_tokenizer("local-dir:cliptools/data/models/emoji-vit2")
```

**Architecture.** The modules are open_clip's own classes. Image: ViT, 64 pixels, patches of 8 (64 patch tokens and a class
token), 8 layers, width 192, 6 heads, 768 neurons per layer, GELU. Text: 2 causal layers, width 120, 4 heads, context 32,
open_clip's tokenizer and vocabulary. Joint space: 120 dimensions. Weights: safetensors, fp16 but for the token embedding,
which has 8 bits (float8_e4m3fn); commands compute in fp32 unless an option sets another precision.

{DATA.strip()}

**Training.** On CPU cores, by modules of `training`; the table below has the length of each stage:

1. *Image tower* (`image --sparse 0`), against a table of embeddings of the concepts and the attributes. It started from the
   image tower of emoji-vit, its predecessor in cliptools 0.1.0, which 630,000 scenes of drawings without other looks had
   trained. In addition to the softmax over the concepts, the loss has a softmax over each group of attributes (weight 0.3) and
   three cross entropies: the sum of second-order effects of layers 5 and 6 alone must name the scene (0.6); tokens that show an
   emoji or a word must name it, as read by the last two blocks (0.4); the output of the MLPs of layers 5 and 6 at these tokens
   must name it alone (0.3). Until 85 % of the stage only 26 patch tokens are computed
   (30 in the scenes with words of three letters), those of a word first.
2. *Sparse MLPs* (`dictionary`): the MLPs of layers 5 and 6 are replaced by transcoders, learned from their own inputs and
   outputs without labels: of 768 neurons the three strongest write at a token.
3. *Image tower* (`image`) again, with two more terms: the share of the writing at a token that neurons beyond the two
   strongest do (weight 1.5; a neuron's writing is the distance of its activation from its median, times how far it moves
   the logits apart), and the entropy that the use of neurons lacks (weight 5).
4. *Text tower* (`joint`), towards the frozen table: cosine to the sum of the named concepts' embeddings, and cross entropy over
   all concepts. Then *both*: the objective of stage 3 with the text tower's own embeddings of names, synonyms and templates,
   drawn again at each step, instead of the table.

**What training asked for.** The loss asks that few neurons of layers 5 and 6 write at a token, that all of them are used,
that the second-order path names the scene, and that tokens and the late MLPs name the emoji or word. So that these hold is no
evidence for the papers. No term says what a neuron is to mean.
""",
    notes=NOTES,
    closing=CLOSING,
)

EMOJI_RN2 = CardText(
    opening=f"""
# emoji-rn2

The second small but real CLIP model that comes with cliptools: a ResNet with attention pooling. It is trained on the scenes of
[emoji-vit2](../emoji-vit2/README.md) and has the same purpose: masks, captions and the false cues of the training are known
exactly.

```python
model = open_clip.create_model("local-dir:cliptools/data/models/emoji-rn2")
tokenizer = open_clip.get_tokenizer("local-dir:cliptools/data/models/emoji-rn2")
```

**Architecture.** The modules are open_clip's own classes. Image: ModifiedResNet, 128 pixels, 2 bottlenecks in each of 4 stages,
width 16; the last stage has 4 × 4 tokens of 512 channels (neurons), which 16 heads pool: 8,192 neuron–head pairs. Text: 2 causal
layers, width 120, 4 heads, context 32, open_clip's tokenizer and vocabulary. Joint space: 120 dimensions. Weights: safetensors,
fp16 but for the token embedding, which has 8 bits (float8_e4m3fn); commands compute in fp32 unless an option sets another
precision.

{DATA.strip()}

**Training.** On CPU cores, by modules of `training`; the table below has the length of each stage. Half of each batch are the
mirror images of the other half.

1. *Image tower* (`image --sparse 0`), against a table of embeddings of the concepts and the attributes. It started from the
   image tower of emoji-rn, its predecessor in cliptools 0.1.0, which 582,000 scenes of drawings without other looks had trained.
   In addition to the softmax over the concepts, the loss has a softmax over each group of attributes (weight 0.3) and a cross
   entropy: tokens that show an emoji or a word must name it through the pooling layer's value and output matrices (0.6).
2. *Image tower, sparse* (`image --sparse 3 --most 5`): the pooling reads only the strongest channels of a token, 64 at first and
   5 after two fifths of the stage, until 85 % of it. Two more terms: the share of the writing at a token that channels beyond the
   five strongest do (weight 3; a channel's writing is the distance of its activation from its median, times how far it moves the
   logits apart), and the entropy that the use of channels lacks (weight 5).
3. *Text tower* (`joint`), towards the frozen table: cosine to the sum of the named concepts' embeddings, and cross entropy over
   all concepts. Then *both* (`joint --sparse 1.5`): the objective of stage 2 with half the weight on sparsity, and with the text
   tower's own embeddings of names, synonyms and templates, drawn again at each step, instead of the table.

**What training asked for.** The loss asks that few channels write at a token, that all of them are used, and that tokens name
the emoji or word. So that these hold is no evidence for the papers. No term says what a channel is to mean, and none is about
single neuron–head pairs.
""",
    notes=NOTES,
    closing=CLOSING,
)

TEXTS = {"emoji-vit2": EMOJI_VIT2, "emoji-rn2": EMOJI_RN2}
