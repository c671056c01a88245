"""Facts about common captioning datasets for model cards: licence, origin, bias, citation."""

import re
from dataclasses import dataclass

CITATION = """@inproceedings{vinyals2015show,
  title = {Show and Tell: A Neural Image Caption Generator},
  author = {Vinyals, Oriol and Toshev, Alexander and Bengio, Samy and Erhan, Dumitru},
  booktitle = {CVPR},
  year = {2015}
}"""


@dataclass(frozen=True)
class KnownData:
    """Facts about a dataset.

    Attributes:
        pattern: regular expression that matches its names.
        title, description, license, language, citation: texts for the card.
        shown: what its photos show.
        bias: a sentence about the bias of captioners trained on it.
    """

    pattern: str
    title: str
    description: str
    license: str
    language: str
    shown: str
    bias: str
    citation: str


_FLICKR_SHOWN = "mostly people and dogs outdoors, from Flickr around 2010"
_FLICKR_BIAS = (
    "Its captions were written in English by workers in the United States and reflect their perspective. There are"
    " hardly any cats, and few indoor scenes."
)

KNOWN = (
    KnownData(
        pattern=r"flickr[-_ ]?8k",
        title="Flickr8k",
        description="about 8,000 photos with five captions each (Hodosh, Young and Hockenmaier 2013)",
        license="research and non-commercial use; the photos belong to their photographers",
        language="en",
        shown=_FLICKR_SHOWN,
        bias=_FLICKR_BIAS,
        citation="""@article{hodosh2013framing,
  title = {Framing Image Description as a Ranking Task: Data, Models and Evaluation Metrics},
  author = {Hodosh, Micah and Young, Peter and Hockenmaier, Julia},
  journal = {Journal of Artificial Intelligence Research},
  volume = {47},
  year = {2013}
}""",
    ),
    KnownData(
        pattern=r"flickr[-_ ]?30k",
        title="Flickr30k",
        description="31,783 photos with five captions each (Young et al. 2014)",
        license="research and non-commercial use; the photos belong to their photographers",
        language="en",
        shown=_FLICKR_SHOWN,
        bias=_FLICKR_BIAS,
        citation="""@article{young2014image,
  title = {From Image Descriptions to Visual Denotations},
  author = {Young, Peter and Lai, Alice and Hodosh, Micah and Hockenmaier, Julia},
  journal = {Transactions of the Association for Computational Linguistics},
  volume = {2},
  year = {2014}
}""",
    ),
    KnownData(
        pattern=r"(?<![a-z])(ms)?coco(?![a-z])|captions_(train|val)20\d\d",
        title="COCO captions",
        description="photos of everyday scenes with five captions each (Lin et al. 2014, Chen et al. 2015)",
        license="CC BY 4.0 for the captions; the photos have the licences that Flickr shows",
        language="en",
        shown="everyday scenes with 80 categories of objects, from Flickr",
        bias=(
            "Its captions were written in English by workers on Mechanical Turk. It shows men more often than women,"
            " and captioners trained on it amplify this (Hendricks et al. 2018, Women also Snowboard)."
        ),
        citation="""@article{chen2015microsoft,
  title = {Microsoft {COCO} Captions: Data Collection and Evaluation Server},
  author = {Chen, Xinlei and Fang, Hao and Lin, Tsung-Yi and Vedantam, Ramakrishna and Gupta, Saurabh
            and Doll{\\'a}r, Piotr and Zitnick, C. Lawrence},
  journal = {arXiv:1504.00325},
  year = {2015}
}""",
    ),
)


def known_data(name: str | None) -> KnownData | None:
    """Return the facts about a dataset, given a name, a Hub id or the last part of a path; None if it is unknown.

    >>> known_data("jxie/flickr8k").title
    'Flickr8k'
    """
    if name is None:
        return None
    return next((known for known in KNOWN if re.search(known.pattern, name.lower())), None)
