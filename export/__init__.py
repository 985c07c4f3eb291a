"""Export: ``python -m export`` turns a model into an artifact directory that runs without torch.

| file | what it is for |
|---|---|
| __main__.py | the command line: options, table, exit code |
| pipeline.py | build each engine, measure it, keep what passes, rename into place |
| job.py | what is loaded once: model, images, golden embeddings, the manifest without its figures |
| build_onnx.py | the ONNX files |
| tokenizer.py | the model's tokenizer as one torch-free file |
| parity.py | the figures and thresholds that decide |
| card.py | model cards: ``python -m export.card`` |
| push.py | to a folder or a hub: ``python -m export.push`` |
| images.py | the real images the figures come from |
"""
