"""Video files to batches on the device. Knows nothing of networks.

Nothing is imported here: decode workers are fresh processes that import `pipelines.sample_source` alone, without torch.
"""
