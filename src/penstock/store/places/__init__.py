"""The places where runs lie: folders and buckets, who may write there, and runs sent from one to another."""
