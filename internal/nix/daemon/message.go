// SPDX-License-Identifier: Apache-2.0
// Copyright The nix-builder-operator Authors

package daemon

import (
	"fmt"

	"nixbuilder.io/nix-builder-operator/internal/nix/wire"
)

// Codes of what a server sends between a request and its reply.
const (
	stderrNext          = 0x6f6c6d67
	stderrRead          = 0x64617461
	stderrWrite         = 0x64617416
	stderrLast          = 0x616c7473
	stderrError         = 0x63787470
	stderrStartActivity = 0x53545254
	stderrStopActivity  = 0x53544f50
	stderrResult        = 0x52534c54
)

// Level is a verbosity of Nix's log.
type Level uint64

// Levels of Nix's log.
const (
	LevelError Level = iota
	LevelWarn
	LevelNotice
	LevelInfo
	LevelTalkative
	LevelChatty
	LevelDebug
	LevelVomit
)

// ActivityType says what an activity does.
type ActivityType uint64

// Activity types that this project makes itself; others pass through.
const (
	ActivityUnknown  ActivityType = 0
	ActivityCopyPath ActivityType = 100
	ActivityBuild    ActivityType = 105
)

// ResultType says what an activity reports.
type ResultType uint64

// Result types of build logs; others pass through.
const (
	ResultBuildLogLine ResultType = 101
	ResultSetPhase     ResultType = 104
)

// Message is something a daemon tells its client while an operation runs: one of
// Next, StartActivity, StopActivity and ActivityResult.
type Message interface {
	encode(w *wire.Writer)
}

// MessageSink receives messages in the order of their arrival, on the goroutine
// that called the method. An error ends the call and closes the connection.
type MessageSink func(Message) error

// Next is a line of plain log text. Text ends with a newline.
type Next struct{ Text string }

// StartActivity opens an activity.
type StartActivity struct {
	// ID is chosen by the sender and unique on the connection.
	ID    uint64
	Level Level
	Type  ActivityType
	// Text is what people see, possibly empty.
	Text   string
	Fields []Field
	// Parent is the ID of the activity that this one is part of, 0 for none.
	Parent uint64
}

// StopActivity closes an activity.
type StopActivity struct{ ID uint64 }

// ActivityResult reports something about an open activity, such as a line of a
// build's log.
type ActivityResult struct {
	ID     uint64
	Type   ResultType
	Fields []Field
}

// Field is an argument of an activity or result: a text or a number.
type Field struct {
	Text   string
	Number uint64
	// IsText tells which of the two it is.
	IsText bool
}

// TextField returns a Field that holds a text.
func TextField(s string) Field { return Field{Text: s, IsText: true} }

// NumberField returns a Field that holds a number.
func NumberField(n uint64) Field { return Field{Number: n} }

// LogLine returns the report of one line of the log of a build, without its
// newline, that belongs to the activity with that id.
func LogLine(activity uint64, line string) ActivityResult {
	return ActivityResult{ID: activity, Type: ResultBuildLogLine, Fields: []Field{TextField(line)}}
}

func (m Next) encode(w *wire.Writer) {
	w.Uint64(stderrNext)
	w.String(m.Text)
}

func (m StartActivity) encode(w *wire.Writer) {
	w.Uint64(stderrStartActivity)
	w.Uint64(m.ID)
	w.Uint64(uint64(m.Level))
	w.Uint64(uint64(m.Type))
	w.String(m.Text)
	encodeFields(w, m.Fields)
	w.Uint64(m.Parent)
}

func (m StopActivity) encode(w *wire.Writer) {
	w.Uint64(stderrStopActivity)
	w.Uint64(m.ID)
}

func (m ActivityResult) encode(w *wire.Writer) {
	w.Uint64(stderrResult)
	w.Uint64(m.ID)
	w.Uint64(uint64(m.Type))
	encodeFields(w, m.Fields)
}

func encodeFields(w *wire.Writer, fields []Field) {
	w.Uint64(uint64(len(fields)))
	for _, f := range fields {
		w.Bool(f.IsText)
		if f.IsText {
			w.String(f.Text)
		} else {
			w.Uint64(f.Number)
		}
	}
}

func (d *decoder) fields() []Field {
	n := d.Count("field count", limitFields)
	var fields []Field
	for range n {
		f := Field{IsText: d.Bool("field kind")}
		if f.IsText {
			f.Text = d.String("field text", limitText)
		} else {
			f.Number = d.Uint64("field number")
		}
		if d.Err() != nil {
			return nil
		}
		fields = append(fields, f)
	}
	return fields
}

// message reads one message. It returns nil and nil for the last one, and a
// *RemoteError where the peer reports one.
func (d *decoder) message() (Message, error) {
	d.SetBudget(d.limits.Message)
	var m Message
	switch code := d.Uint64("message type"); code {
	case stderrLast:
	case stderrError:
		e := d.remoteError()
		if d.Err() == nil {
			return nil, e
		}
	case stderrNext:
		m = Next{Text: d.String("log text", limitText)}
	case stderrStartActivity:
		m = StartActivity{
			ID:     d.Uint64("activity id"),
			Level:  Level(d.Uint64("activity level")),
			Type:   ActivityType(d.Uint64("activity type")),
			Text:   d.String("activity text", limitText),
			Fields: d.fields(),
			Parent: d.Uint64("activity parent"),
		}
	case stderrStopActivity:
		m = StopActivity{ID: d.Uint64("activity id")}
	case stderrResult:
		m = ActivityResult{
			ID:     d.Uint64("activity id"),
			Type:   ResultType(d.Uint64("result type")),
			Fields: d.fields(),
		}
	case stderrRead, stderrWrite:
		d.Fail("message type", "the peer wants to exchange data (%#x) in a way that no operation used here has", code)
	default:
		d.Fail("message type", "%#x is no message of the worker protocol", code)
	}
	if err := d.Err(); err != nil {
		return nil, err
	}
	return m, nil
}

// messages passes messages to sink until the last one.
func (d *decoder) messages(sink MessageSink) error {
	for {
		m, err := d.message()
		if err != nil || m == nil {
			return err
		}
		if sink == nil {
			continue
		}
		if err := sink(m); err != nil {
			return fmt.Errorf("hand on a message of the daemon: %w", err)
		}
	}
}
