"""The one adapter of Flower: nothing else touches what Flower does not document (all but flwr.app, flwr.clientapp,
flwr.serverapp and flwr.proto).

What stands here is written for one version of Flower and no other: `version.check_version` says so before anything else
does.
"""
