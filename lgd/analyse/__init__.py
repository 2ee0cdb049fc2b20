"""What a trained model gets wrong, as numbers and as a page: `lgd analyse`."""
