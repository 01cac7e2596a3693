"""Inventory reports of providers, in place of a listing: S3 Inventory, Storage Insights, Azure Blob Inventory."""

from worker.artifacts.inventories.listing_from_report import InventoryListing, open_inventory, requested_inventory
from worker.artifacts.inventories.manifest import BadInventory

__all__ = ["BadInventory", "InventoryListing", "open_inventory", "requested_inventory"]
