"""The job API: one blueprint an area, served by Hypercorn on trio."""
