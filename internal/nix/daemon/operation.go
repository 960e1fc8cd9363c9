// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package daemon

import (
	"fmt"
	"strings"
)

// Operation is the code of an operation of the worker protocol.
type Operation uint64

// Operations that this package encodes or decodes.
const (
	OpBuildPaths              Operation = 9
	OpAddTempRoot             Operation = 11
	OpSetOptions              Operation = 19
	OpQueryPathInfo           Operation = 26
	OpQueryValidPaths         Operation = 31
	OpQuerySubstitutablePaths Operation = 32
	OpBuildDerivation         Operation = 36
	OpNARFromPath             Operation = 38
	OpAddMultipleToStore      Operation = 44
)

// HookOperations is what a stock build hook needs from a builder that it believes
// to trust it, and all that a Server offers unless told otherwise.
func HookOperations() []Operation {
	return []Operation{
		OpSetOptions, OpQueryValidPaths, OpAddMultipleToStore,
		OpBuildDerivation, OpQueryPathInfo, OpNARFromPath,
	}
}

// operationNames holds the names that Nix gives its operations, so that errors
// about operations that we do not offer name them too.
var operationNames = map[Operation]string{
	1: "IsValidPath", 3: "HasSubstitutes", 4: "QueryPathHash", 5: "QueryReferences",
	6: "QueryReferrers", 7: "AddToStore", 8: "AddTextToStore", 9: "BuildPaths",
	10: "EnsurePath", 11: "AddTempRoot", 12: "AddIndirectRoot", 13: "SyncWithGC",
	14: "FindRoots", 16: "ExportPath", 18: "QueryDeriver", 19: "SetOptions",
	20: "CollectGarbage", 21: "QuerySubstitutablePathInfo", 22: "QueryDerivationOutputs",
	23: "QueryAllValidPaths", 25: "QueryFailedPaths", 24: "ClearFailedPaths",
	26: "QueryPathInfo", 27: "ImportPaths", 28: "QueryDerivationOutputNames",
	29: "QueryPathFromHashPart", 30: "QuerySubstitutablePathInfos", 31: "QueryValidPaths",
	32: "QuerySubstitutablePaths", 33: "QueryValidDerivers", 34: "OptimiseStore",
	35: "VerifyStore", 36: "BuildDerivation", 37: "AddSignatures", 38: "NarFromPath",
	39: "AddToStoreNar", 40: "QueryMissing", 41: "QueryDerivationOutputMap",
	42: "RegisterDrvOutput", 43: "QueryRealisation", 44: "AddMultipleToStore",
	45: "AddBuildLog", 46: "BuildPathsWithResults", 47: "AddPermRoot",
}

// String returns Nix's name and the code, "BuildDerivation (36)".
func (op Operation) String() string {
	if name, ok := operationNames[op]; ok {
		return fmt.Sprintf("%s (%d)", name, uint64(op))
	}
	return fmt.Sprintf("operation %d", uint64(op))
}

func joinOperations(ops []Operation) string {
	names := make([]string, len(ops))
	for i, op := range ops {
		names[i] = op.String()
	}
	return strings.Join(names, ", ")
}
