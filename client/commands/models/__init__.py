"""The commands that use a trained model: predict, evaluate, explain, serve, and personal for a site's own.

What they do stands in client/predict, client/evaluate, client/explain and client/serve.
"""
