"""The library every package stands on: model, preprocessing, checkpoint, sources, engine."""
