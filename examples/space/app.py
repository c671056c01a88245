"""The app as a Hugging Face Space: captions of a photo by the model that the variable NIC_MODEL names."""

import os
import sys

from nic_hf import NICForConditionalGeneration, NICProcessor
from nic_hf.app import CaptionExplainer, build_app, launch

name = os.environ.get("NIC_MODEL")
if not name:
    sys.exit("Set NIC_MODEL to the captioner to show: a Hub id, or a folder.")
model = NICForConditionalGeneration.from_pretrained(name)
explainer = CaptionExplainer(model, NICProcessor.from_pretrained(name))
# A Space is reached from outside its container.
launch(
    build_app(explainer),
    host=os.environ.get("GRADIO_SERVER_NAME", "0.0.0.0"),
    port=int(os.environ.get("GRADIO_SERVER_PORT", 7860)),
)
