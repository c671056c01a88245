"""A Space that captions photos. Its captioner is the repository that NIC_HF_MODEL names (a variable of the Space)."""

import os

from nic_hf.app import serve

if __name__ == "__main__":
    serve(os.environ.get("NIC_HF_MODEL", "nic-hf/flickr8k-captioner"))
