"""The bucket: stores, outbox → manifest, lease, restore, verify. It sees groups, scores and keep-classes."""
