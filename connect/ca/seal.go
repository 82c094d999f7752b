package ca

import (
	"crypto/aes"
	"crypto/cipher"
	"errors"
	"fmt"
)

// Sealer encrypts keys for rest. What is sealed with one aad opens only with it.
// Implementations are safe for concurrent use.
type Sealer interface {
	Seal(plaintext, aad []byte) ([]byte, error)
	Open(sealed, aad []byte) ([]byte, error)
}

// ErrUnseal means that a sealed key was made under another seal, or is damaged.
var ErrUnseal = errors.New("cannot be unsealed: it was sealed under another seal key, or is damaged")

// sealV1 leads what is sealed: AES-256-GCM, random nonce in front.
const sealV1 = 1

type gcmSealer struct{ aead cipher.AEAD }

// NewSealer seals with AES-256-GCM under key.
func NewSealer(key [32]byte) (Sealer, error) {
	if key == [32]byte{} {
		return nil, errors.New("seal: the key is all zeros")
	}
	block, err := aes.NewCipher(key[:])
	if err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	return gcmSealer{aead}, nil
}

func (s gcmSealer) Seal(plaintext, aad []byte) ([]byte, error) {
	return s.aead.Seal([]byte{sealV1}, nil, plaintext, aad), nil //nolint:gosec // the AEAD makes its own random nonce, and wants none
}

func (s gcmSealer) Open(sealed, aad []byte) ([]byte, error) {
	if len(sealed) == 0 || sealed[0] != sealV1 {
		return nil, ErrUnseal
	}
	plain, err := s.aead.Open(nil, nil, sealed[1:], aad)
	if err != nil {
		return nil, ErrUnseal
	}
	return plain, nil
}

// aad ties a sealed key to its cluster and its root.
func aad(clusterID, rootID string) []byte {
	return []byte("weft ca key\x00" + clusterID + "\x00" + rootID)
}
