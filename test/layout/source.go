// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package layout

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode"
)

const (
	// MaxFileLines is for all files, tests too.
	MaxFileLines = 400
	// MaxFunctionLines is for functions that ship; a test's table of cases may
	// be longer.
	MaxFunctionLines = 100
)

// CheckTree returns what is wrong with the Go files below root, one message
// each, sorted. Generated files need only the licence; testdata, hidden
// directories and bin are left out.
func CheckTree(root, licence string) ([]string, error) {
	var broken []string
	documented := map[string]bool{} // by directory: has a package comment
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := entry.Name()
		if entry.IsDir() {
			hidden := strings.HasPrefix(name, ".") && path != root
			if hidden || name == "testdata" || name == "bin" {
				return filepath.SkipDir
			}
			return nil
		}
		if filepath.Ext(name) != ".go" {
			return nil
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		source, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		file, messages := checkFile(filepath.ToSlash(rel), source, licence)
		broken = append(broken, messages...)
		if file != nil && !strings.HasSuffix(name, "_test.go") {
			dir := filepath.ToSlash(filepath.Dir(rel))
			documented[dir] = documented[dir] || file.Doc != nil
		}
		return nil
	})
	for dir, ok := range documented {
		if !ok {
			broken = append(broken, dir+": the package has no comment")
		}
	}
	slices.Sort(broken)
	return broken, err
}

// checkFile returns nil instead of the file where it cannot be parsed: the
// compiler says why.
func checkFile(path string, source []byte, licence string) (*ast.File, []string) {
	var broken []string
	say := func(line int, format string, args ...any) {
		broken = append(broken, fmt.Sprintf("%s:%d: ", path, line)+fmt.Sprintf(format, args...))
	}
	files := token.NewFileSet()
	file, err := parser.ParseFile(files, path, source, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return nil, nil
	}
	if !bytes.Contains(source[:files.Position(file.Package).Offset], []byte(licence)) {
		say(1, "the licence of hack/boilerplate.go.txt is not at its top")
	}
	if ast.IsGenerated(file) {
		return file, broken
	}
	if lines := bytes.Count(source, []byte("\n")); lines > MaxFileLines {
		say(1, "%d lines; split it, %d is the limit", lines, MaxFileLines)
	}
	if strings.HasSuffix(path, "_test.go") {
		return file, broken
	}
	for _, declaration := range file.Decls {
		line := files.Position(declaration.Pos()).Line
		if function, ok := declaration.(*ast.FuncDecl); ok {
			if lines := files.Position(function.End()).Line - line + 1; lines > MaxFunctionLines {
				say(line, "%s has %d lines; split it, %d is the limit", function.Name.Name, lines, MaxFunctionLines)
			}
		}
		for _, name := range undocumented(declaration) {
			say(files.Position(name.Pos()).Line, "%s is exported and has no comment", name.Name)
		}
	}
	return file, broken
}

// wellKnown are methods whose contract the standard library states.
var wellKnown = []string{"As", "Error", "Is", "Unwrap"}

// undocumented returns the exported names of a declaration that no comment is
// about. One comment may be about a whole group, or about several neighbours
// whose names it mentions; fields may be explained by that of their type.
func undocumented(declaration ast.Decl) []*ast.Ident {
	switch d := declaration.(type) {
	case *ast.FuncDecl:
		known := d.Recv != nil && slices.Contains(wellKnown, d.Name.Name)
		if d.Doc == nil && d.Name.IsExported() && exportedReceiver(d) && !known {
			return []*ast.Ident{d.Name}
		}
	case *ast.GenDecl:
		if d.Doc != nil {
			return nil
		}
		var names []*ast.Ident
		last := ""
		for _, spec := range d.Specs {
			comment, declared := parts(spec)
			if comment != "" {
				last = comment
				continue
			}
			names = append(names, slices.DeleteFunc(exported(declared), func(name *ast.Ident) bool {
				return slices.Contains(strings.FieldsFunc(last, notInName), name.Name)
			})...)
		}
		return names
	}
	return nil
}

// parts returns the comment of a declaration within a group and what it
// declares.
func parts(spec ast.Spec) (string, []*ast.Ident) {
	switch s := spec.(type) {
	case *ast.ValueSpec:
		return s.Doc.Text() + s.Comment.Text(), s.Names
	case *ast.TypeSpec:
		return s.Doc.Text() + s.Comment.Text(), []*ast.Ident{s.Name}
	}
	return "", nil
}

func notInName(r rune) bool { return r != '_' && !unicode.IsLetter(r) && !unicode.IsDigit(r) }

func exported(names []*ast.Ident) []*ast.Ident {
	return slices.DeleteFunc(slices.Clone(names), func(name *ast.Ident) bool { return !name.IsExported() })
}

// exportedReceiver tells whether a function is no method, or one of an
// exported type.
func exportedReceiver(function *ast.FuncDecl) bool {
	if function.Recv == nil {
		return true
	}
	for expression := function.Recv.List[0].Type; ; {
		switch t := expression.(type) {
		case *ast.StarExpr:
			expression = t.X
		case *ast.IndexExpr:
			expression = t.X
		case *ast.IndexListExpr:
			expression = t.X
		case *ast.Ident:
			return t.IsExported()
		default:
			return false
		}
	}
}
