"""What is collected where: nnU-Net is only in the networks' own environment, whose target runs these tests."""

from importlib.util import find_spec

collect_ignore = [] if find_spec("nnunetv2") else ["elsewhere_nnunet.py"]
