"""The names of everything in a run folder."""

CONFIG = "config.yaml"  # the resolved settings
ADAPTER = "adapter"  # folder of what has been trained or merged
COLD_START = "cold_start"  # folder of the student's first weights
CHECKPOINTS = "checkpoints"
METRICS = "metrics.jsonl"  # a line an update
TRAINING = "training.json"  # what a finished training has cost
SAMPLES = "samples"  # folder of the images that teachers have drawn for SFT
EMBEDDINGS = "embeddings"  # folder of encoded prompts
MERGE = "merge.json"  # what a merge has kept
SCORES = "scores"  # folder of an evaluation's finished rows, domain by domain
RESULTS = "results.json"
RESULTS_TABLE = "results.md"
PICTURES = "images"  # folder of the pictures that a report shows
PICTURE_LIST = "pictures.json"  # in that folder: what they show
GRID = "grid.png"
REPORT = "report.html"
CARD = "README.md"  # the model card
SUMMARY = "summary.json"  # the last file of a finished part of the miniature
MANIFEST = "manifest.json"  # how what lies beside it was made
