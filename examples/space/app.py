"""A Space that captions photos with the captioner of nic_hf, or with the one that its variable NIC_HF_MODEL names."""

import os

from nic_hf.app import serve

if __name__ == "__main__":
    serve(os.environ.get("NIC_HF_MODEL"))
