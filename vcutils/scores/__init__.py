"""How good are captions: the COCO protocol, baselines, a trained run and its report, ablations."""
