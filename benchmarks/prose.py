"""Generate English prose of exact token lengths by combining sentence parts and cutting with the model's tokenizer.

All texts are distinct and none is padded by repeating a word, so tokenizers and caches behave as with real texts.
"""

import random
import re
from collections.abc import Iterator, Sequence

from tokenizers import Tokenizer

_OPENINGS = """
After the first hard frost
When the last train had left the valley
Because nobody had asked for a receipt
Long before the harbour was dredged
On the third morning of the strike
While the committee argued about money
Once the varnish had dried
As soon as the fog began to lift
In the years between two censuses
Although her notes were incomplete
Whenever the river rose above its banks
Since the old engine was sold for scrap
Against the advice of two physicians
Under a licence that had long expired
Without waiting for a second opinion
During the quiet hours of the night shift
Just as the choir reached its final verse
Despite a generous offer from the museum
Where the road bends towards the quarry
Until someone repaired the northern wall
""".strip().splitlines()

_SUBJECTS = """
the ferryman's youngest daughter
a retired teacher of geometry
the inspector from the ministry
every baker on our street
one of the junior surveyors
the woman who ran the telegraph office
a travelling seller of lenses
the gardener and both of his apprentices
an engineer with little patience
the captain of a coal barge
our landlord, usually so careful
a visiting botanist from Uppsala
the clerk behind the brass counter
two brothers who shared a workshop
the librarian responsible for maps
a violinist between engagements
the night nurse on the upper floor
an apprentice clockmaker
the editor of a small weekly paper
a beekeeper known for his temper
""".strip().splitlines()

_ACTIONS = """
counted the crates again and found one missing
drew a careful plan of the flooded cellar
sold three pounds of copper wire to a stranger
refused to sign anything written in pencil
measured how quickly the paint was fading
wrote a long letter that was never posted
carried the heavier instruments up the hill
noticed a crack running along the glass dome
proposed a cheaper route through the marshes
kept bees, geese and a rather lazy dog
translated the whole manual in eleven days
borrowed a ladder and forgot to return it
collected seeds from plants that few people name
learned to tell the ships apart by their whistles
invented an excuse which convinced almost everyone
painted the shutters a surprising shade of green
discovered that both recipes used the same flour
walked home along the canal, humming quietly
recorded temperatures in a leather notebook
explained the new timetable to anxious passengers
""".strip().splitlines()

_ENDINGS = """
and the neighbours talked about it for weeks
which saved the company a considerable sum
so the meeting was moved to Thursday
though the evidence pointed somewhere else
before anyone could open a window
as if nothing unusual had happened
and later regretted having been so hasty
for reasons that only became clear in spring
while rain drummed on the tin roof
because habits of that kind are hard to break
to the visible relief of the mayor
unless the older records are mistaken
with results that surprised even the sceptics
and nobody thought to thank him
until the supply of lamp oil ran out
in exchange for a barrel of pickled herring
""".strip().splitlines()


class Prose:
    """A generator of texts of exact token lengths. The same seed gives the same texts in every run.

    Args:
        tokenizer: the model's tokenizer. Truncation and padding are turned off on it.
        seed: the seed of the random choices.
    """

    def __init__(self, tokenizer: Tokenizer, *, seed: int) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self._random = random.Random(seed)
        self._used: set[str] = set()

    def text(self, tokens: int) -> str:
        """Return a new text of `tokens` tokens, including special tokens."""
        while True:
            candidate = self._cut(self._passage(2 * tokens), tokens)
            if candidate not in self._used and self._length(candidate) == tokens:
                self._used.add(candidate)
                return candidate

    def texts(self, lengths: Sequence[int]) -> list[str]:
        """Return one text for each token length."""
        return [self.text(tokens) for tokens in lengths]

    def _passage(self, words: int) -> str:
        """Return at least `words` words, starting at a random word in the first half of a sentence."""
        sentences = self._sentences()
        passage = next(sentences).split()
        passage = passage[self._random.randrange(len(passage) // 2) :]
        while len(passage) < words:
            passage += next(sentences).split()
        return " ".join(passage)

    def _sentences(self) -> Iterator[str]:
        while True:
            opening, subject, action, ending = (
                self._random.choice(parts) for parts in (_OPENINGS, _SUBJECTS, _ACTIONS, _ENDINGS)
            )
            yield f"{opening}, {subject} {action}, {ending}."

    def _cut(self, passage: str, tokens: int) -> str:
        """Cut the passage after a token.

        If the cut falls inside a word, the tokenizer may split the remaining part differently, so the caller
        checks the length.
        """
        encoding = self._tokenizer.encode(passage, add_special_tokens=False)
        special = self._tokenizer.num_special_tokens_to_add(is_pair=False)
        return passage[: encoding.offsets[tokens - special - 1][1]]

    def _length(self, text: str) -> int:
        return len(self._tokenizer.encode(text).ids)


def all_words() -> list[str]:
    """Return the distinct words of the prose in lower case, without punctuation."""
    parts = " ".join([*_OPENINGS, *_SUBJECTS, *_ACTIONS, *_ENDINGS]).lower()
    return sorted(set(re.findall(r"\w+", parts)))
